"""An arm64 system in a folder, and Pythons in it that take themselves to be on a board. Made once, then cached.

    Debian's arm64 packages, unpacked  ->  system-<digest>/             no chroot, nothing of it is ever installed
    aarch64 wheels of what we pin      ->  wheels-<digest>/
    edgeml-runtime, built from here    ->  agent-<digest>/site          pip resolves it against those wheels
                                           agent-<digest>/<board>/      root (the kernel's files), bin/python

`bin/python` is a script that runs the arm64 Python under qemu-user as the board's core. It names itself in
sys.executable, so children that the agent starts are emulated too. `python -m tests.emulated.board_root` prints them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeml.devices import DeviceProfile, find_board
from tests.emulated.boards import write_board

PROJECT = Path(__file__).resolve().parents[2]
BOARDS = ("raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5")
DIES = "onnxruntime==1.21.0"  # an illegal instruction on cores without dot products
TO_RUN = {"qemu-aarch64": "qemu-user"}  # program: its Debian package
TO_MAKE = {"debootstrap": "debootstrap", "dpkg-deb": "dpkg"}
PACKAGES = "python3"  # on top of Debian's minimum
LAYOUT = "1"  # of a system: count up when what is made of the same packages changes
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
SHARED = ("usr", "bin", "sbin", "lib", "etc")  # folders that every board takes from the system
KEEP = 3  # agents: 220 MB each
PYTHON = """\
#!/bin/sh
exec qemu-aarch64 -cpu {cpu} -L {root} -0 {python} {system}/usr/bin/python{version} "$@"
"""


class CannotEmulate(Exception):
    """This machine cannot make the root; the message says what it lacks."""


@dataclass(frozen=True)
class Emulated:
    """One board: `python` runs as its core; `dies` does, with an onnxruntime that some cores do not survive."""

    profile: DeviceProfile
    root: Path
    python: Path
    dies: Path

    @property
    def cpu(self) -> str:
        return qemu_cpu(self.profile)


def qemu_cpu(board: DeviceProfile) -> str:
    """Return the board's core as qemu calls it; never `max`, which has instructions that no board has."""
    return board.core.lower()


@functools.cache
def boards() -> dict[str, Emulated]:
    """Return every emulated board, made here where the cache does not have it."""
    _need(TO_RUN)
    cache = _cache()
    with _locked(cache):
        system = _made(cache, "system", [LAYOUT, _suite(), PACKAGES], make=_unpack_system)
        version = _python_version(system)
        pins = [version, *PLATFORMS, DIES, _digest_of("constraints.txt", "runtime/setup.cfg")]
        wheels = _made(cache, "wheels", pins, make=lambda folder: _download(folder, version))
        inputs = [
            system.name,
            wheels.name,
            _digest_of("runtime", "devices", "tests/emulated/board*.py"),
        ]
        agent = _made(cache, "agent", inputs, make=lambda folder: _install(folder, system=system, wheels=wheels))
        _forget_old(cache, agent)
    return {name: _emulated(agent / name, find_board(name)) for name in BOARDS}


def _emulated(folder: Path, profile: DeviceProfile) -> Emulated:
    return Emulated(profile, folder / "root", folder / "bin/python", folder / "dies/bin/python")


def _cache() -> Path:
    given = os.environ.get("EDGEML_CACHE")
    folder = (Path(given).absolute() if given else Path.home() / ".cache/edgeml") / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _made(cache: Path, kind: str, inputs: Sequence[str], *, make: Callable[[Path], None]) -> Path:
    """Return the folder of `kind` that `make` fills from `inputs`; one that was not finished is made anew."""
    digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:12]
    folder = cache / f"{kind}-{digest}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        (folder / "complete").touch()
    os.utime(folder)
    return folder


def _digest_of(*patterns: str) -> str:
    """Return the digest of the project's files that match, folders whole, without what builds leave there."""
    found = {path for pattern in patterns for path in _tree(PROJECT.glob(pattern))}
    total = hashlib.sha256()
    for path in sorted(found):
        total.update(f"{path.relative_to(PROJECT)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return total.hexdigest()


def _tree(paths: Iterator[Path]) -> Iterator[Path]:
    for path in paths:
        if path.name in ("__pycache__", "build") or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from _tree(path.iterdir())
        else:
            yield path


def _forget_old(cache: Path, used: Path) -> None:
    """Remove all but the `KEEP` agents that were used last."""
    agents = sorted(cache.glob("agent-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in agents[KEEP:]:
        if path != used:
            shutil.rmtree(path, ignore_errors=True)


def _unpack_system(folder: Path) -> None:
    """Fetch Debian's minimum and Python for arm64, and unpack it; scripts of packages do not run."""
    _need(TO_MAKE)
    with tempfile.TemporaryDirectory(dir=folder) as fetched:
        command = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}"]
        _run([*command, _suite(), fetched, _mirror()], what="fetch Debian for arm64")
        for package in sorted(Path(fetched).glob("var/cache/apt/archives/*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(folder)], what=f"unpack {package.name}")
    version = _python_version(folder)
    if version == _own_version():  # the same bytecode: emulated, compiling takes a minute
        subprocess.run([sys.executable, "-m", "compileall", "-q", folder / f"usr/lib/python{version}"], check=False,
                       stdout=subprocess.DEVNULL)  # fmt: skip


def _python_version(system: Path) -> str:
    return (system / "usr/bin/python3").readlink().name.removeprefix("python")


def _own_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _download(folder: Path, version: str) -> None:
    """Fetch the aarch64 wheels of what the agent needs, as pinned, and the onnxruntime that dies."""
    with _built_agent() as own:
        _pip("download", "--constraint", PROJECT / "constraints.txt", "--dest", folder, own, version=version)
    (folder / own.name).unlink(missing_ok=True)  # ours is built anew for every state of the project
    _pip("download", "--no-deps", "--dest", folder, DIES, version=version)


def _install(folder: Path, *, system: Path, wheels: Path) -> None:
    """Install the agent from its own wheel and only from `wheels`, then give every board a root and Pythons."""
    version = _python_version(system)
    offline = ["install", "--no-index", "--find-links", wheels, "--no-warn-script-location"]
    with _built_agent() as own:
        pinned = ["--constraint", PROJECT / "constraints.txt"]
        _pip(*offline, *pinned, "--target", folder / "site", own, version=version)
    _pip(*offline, "--no-deps", "--target", folder / "dies", DIES, version=version)
    (folder / "dies/site.pth").write_text(f"{folder / 'site'}\n")
    for name in BOARDS:
        profile, here = find_board(name), folder / name
        (here / "root").mkdir(parents=True)
        for shared in SHARED:
            (here / "root" / shared).symlink_to(system / shared)
        write_board(here / "root", profile)
        settings = {"cpu": qemu_cpu(profile), "root": here / "root", "system": system, "version": version}
        _environment(here, folder / "site", settings=settings)
        _environment(here / "dies", folder / "dies", settings=settings)


def _environment(folder: Path, packages: Path, *, settings: dict[str, object]) -> None:
    """Lay out a virtual environment in `folder` as on a board: bin/python, bin/edgeml-agent, its packages."""
    python = folder / "bin/python"
    library = folder / f"lib/python{settings['version']}"
    for path in (python.parent, library):
        path.mkdir(parents=True, exist_ok=True)
    (library / "site-packages").symlink_to(packages)
    home = f"{settings['system']}/usr/bin"
    (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    python.write_text(PYTHON.format(python=python, **settings))
    command = "import sys\nfrom edgeml_runtime.__main__ import main\nsys.exit(main())\n"
    (folder / "bin/edgeml-agent").write_text(f"#!{python}\n{command}")
    for path in (python, folder / "bin/edgeml-agent"):
        path.chmod(0o755)


@contextlib.contextmanager
def _built_agent() -> Iterator[Path]:
    """Give the wheel of edgeml-runtime, built from a clean copy: a build folder could hold modules that are gone."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "runtime"
        shutil.copytree(
            PROJECT / "runtime", source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        )
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", temporary, str(source)]
        _run(command, what="build the wheel of edgeml-runtime")
        yield next(Path(temporary).glob("*.whl"))


def _pip(verb: str, *words: object, version: str) -> None:
    """Run pip for the emulated Python instead of this one."""
    target = [f"--platform={platform}" for platform in PLATFORMS]
    digits = version.replace(".", "")
    target += ["--only-binary=:all:", f"--python-version={digits}", "--implementation=cp"]
    target += [f"--abi={abi}" for abi in (f"cp{digits}", "abi3", "none")]
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *target, *map(str, words)]
    _run(command, what=f"{verb} the aarch64 wheels")


def _run(command: Sequence[str], *, what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing")[-600:]
        raise CannotEmulate(f"cannot {what}: {said}")


def _need(tools: Mapping[str, str]) -> None:
    """Install what is missing where this is root on Debian; else say what to install."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = sorted({package for program, package in tools.items() if not shutil.which(program, path=path)})
    if not missing:
        return
    install = f"apt-get install -y --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise CannotEmulate(f"{', '.join(missing)} not installed: sudo {install}")
    _run(["apt-get", "update", "-qq"], what="refresh apt's lists")
    _run(install.replace("apt-get", "apt-get -o DPkg::Lock::Timeout=300").split(), what=install)


def _suite() -> str:
    """Return the name of the Debian release this machine runs: its mirror has arm64, too."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    facts = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    if facts.get("ID") != "debian" or "VERSION_CODENAME" not in facts:
        raise CannotEmulate(f"the root is made on Debian, and this is {facts.get('PRETTY_NAME', 'another system')}")
    return facts["VERSION_CODENAME"]


def _mirror() -> str:
    """Return the address that apt here fetches this release of Debian from."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for codename, _, address in (line.partition(" ") for line in done.stdout.splitlines()):
            if codename == _suite():
                return address
        _run(["apt-get", "update", "-qq"], what="refresh apt's lists")
    raise CannotEmulate(f"apt has no source for {_suite()}: apt-get indextargets names none")


def resolve(version: str) -> list[str]:
    """Return the aarch64 wheels that pip chooses for the agent on Python `version`, by our pins; installs nothing."""
    with _built_agent() as own, tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["--dry-run", "--ignore-installed", "--report", report, "--constraint", PROJECT / "constraints.txt"]
        _pip("install", *words, "--target", folder, own, version=version)
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [Path(item["download_info"]["url"]).name for item in chosen]


if __name__ == "__main__":
    for emulated in boards().values():
        print(emulated.cpu, emulated.python)
