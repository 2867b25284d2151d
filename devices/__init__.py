"""Board profiles, one TOML file a board; installed as the package `edgeml_devices`."""
