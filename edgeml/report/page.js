// Draws the figures of the page: each is a Vega-Lite specification in a script element of type application/json.
(() => {
  "use strict";
  const config = JSON.parse(document.getElementById("config").textContent);
  const tip = document.getElementById("tip");
  const touch = matchMedia("(pointer: coarse)").matches;

  const show = (_handler, event, _item, value) => {
    if (value === null || value === undefined || value === "") { tip.hidden = true; return; }
    tip.replaceChildren(...Object.entries(value).map(([name, text]) => {
      const row = document.createElement("div"), key = document.createElement("span");
      key.textContent = name;
      row.append(key, " " + text);
      return row;
    }));
    tip.hidden = false;
    const { clientX: x, clientY: y } = event, { offsetWidth: w, offsetHeight: h } = tip;
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - w - 8)) + "px";
    tip.style.top = (y + h + 24 > innerHeight ? Math.max(4, y - h - 12) : y + 16) + "px";
  };

  const still = (spec) => { // on a touch screen dragging must scroll the page
    for (const layer of spec.layer || []) {
      layer.params = (layer.params || []).flatMap((one) => {
        if (one.bind !== "scales") return [one];
        return touch ? [] : [{ ...one, select: { ...one.select, zoom: "wheel![event.ctrlKey]" } }];
      });
    }
    return spec;
  };

  const draw = (plot) => {
    const source = plot.querySelector("script");
    if (!source || !plot.clientWidth) return;
    const spec = still(JSON.parse(source.textContent));
    const choose = plot.parentElement.querySelector(".choose");
    const room = document.createElement("div"); // the plot itself keeps its role and its words
    room.className = "room";
    plot.replaceChildren(room);
    const options = { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip: show, logLevel: 1, config };
    vegaEmbed(room, { ...spec, autosize: { type: "fit-x", contains: "padding" } }, choose ? { ...options, bind: choose } : options)
      .then(() => room.querySelector("svg").setAttribute("aria-hidden", "true"))
      .catch((error) => console.error(error));
  };

  const all = () => document.querySelectorAll(".plot").forEach((plot) => {
    try { draw(plot); } catch (error) { console.error(error); } // its words stay, and the others are drawn
  });
  document.addEventListener("toggle", all, true);
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details.part").forEach((part) => { part.open = true; });
    all();
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  document.querySelectorAll("pre").forEach((box) => {
    if (!navigator.clipboard) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(box.textContent);
      button.textContent = "Copied";
    });
    box.after(button);
  });
  all();
  document.documentElement.dataset.drawn = "yes";
})();
