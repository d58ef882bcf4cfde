"use strict";
(() => {
  const tip = document.getElementById("tip");
  const make = (name, attributes = {}) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const figure = (v) => (Math.abs(v) >= 1e4 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(3) : String(+v.toPrecision(5)));

  function place(event) {
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 12 : event.clientX + 16;
    const top = event.clientY + 16 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }

  // Where the pointer stands in the coordinates of a picture's own.
  function inside(svg, event) {
    const box = svg.getBoundingClientRect();
    const view = svg.viewBox.baseVal;
    return [((event.clientX - box.left) / box.width) * view.width, ((event.clientY - box.top) / box.height) * view.height];
  }

  // Lines: the values at the step under the pointer.
  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const chart = JSON.parse(svg.dataset.chart);
    const cross = make("line", { class: "cross", y1: chart.top, y2: chart.bottom, visibility: "hidden" });
    svg.append(cross);
    const show = (event) => {
      const [at] = inside(svg, event);
      const rows = chart.lines.map((line) => [line, line.points.reduce((a, b) => (Math.abs(b[2] - at) < Math.abs(a[2] - at) ? b : a))]);
      const near = rows.map(([, p]) => p).reduce((a, b) => (Math.abs(b[2] - at) < Math.abs(a[2] - at) ? b : a));
      cross.setAttribute("x1", near[2]);
      cross.setAttribute("x2", near[2]);
      cross.setAttribute("visibility", "visible");
      tip.replaceChildren(`${chart.x} ${figure(near[0])}`);
      for (const [line, point] of rows) {
        if (Math.abs(point[2] - near[2]) > 0.01) continue;
        const row = document.createElement("div");
        const key = document.createElement("span");
        key.className = `key ${line.kind}`;
        key.textContent = `${line.label}  `;
        const value = document.createElement("b");
        value.textContent = figure(point[1]);
        row.append(key, value);
        tip.append(row);
      }
      place(event);
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); });
  }

  // The map: the sample under the pointer, and one label alone.
  for (const box of document.querySelectorAll(".mapbox")) {
    const told = JSON.parse(box.dataset.thumbs);
    const svg = box.querySelector("svg");
    const dots = [...svg.querySelectorAll("circle")];
    const places = dots.map((dot) => [+dot.getAttribute("cx"), +dot.getAttribute("cy")]);
    let last = null;
    const thumb = (i) => {
      if (told.sheet) {
        const zoom = Math.max(1, Math.round(112 / Math.max(told.w, told.h)));
        const node = document.createElement("div");
        node.className = "thumb";
        const [column, row] = [i % told.across, Math.floor(i / told.across)];
        Object.assign(node.style, {
          width: `${told.w * zoom}px`, height: `${told.h * zoom}px`, backgroundImage: `url(${told.sheet})`,
          backgroundSize: `${told.across * told.w * zoom}px ${told.down * told.h * zoom}px`,
          backgroundPosition: `-${column * told.w * zoom}px -${row * told.h * zoom}px`,
        });
        return node;
      }
      const values = told.curves[i];
      const seen = values.filter((v) => v !== null);
      const [low, high] = [Math.min(...seen), Math.max(...seen)];
      const drawing = make("svg", { viewBox: "0 0 150 60", preserveAspectRatio: "none" });
      let pen = "M";
      let path = "";
      values.forEach((v, k) => {
        if (v === null) { pen = "M"; return; }
        path += `${pen}${(k / Math.max(1, values.length - 1)) * 150},${56 - ((v - low) / (high - low || 1)) * 52}`;
        pen = "L";
      });
      drawing.append(make("path", { d: path }));
      return drawing;
    };
    const show = (event) => {
      const [x, y] = inside(svg, event);
      let [best, nearest] = [-1, 14 * 14];
      places.forEach(([a, b], i) => {
        const far = (a - x) ** 2 + (b - y) ** 2;
        if (far < nearest && !dots[i].classList.contains("dim")) [best, nearest] = [i, far];
      });
      last?.classList.remove("at");
      if (best < 0) { tip.hidden = true; return; }
      last = dots[best];
      last.classList.add("at");
      tip.replaceChildren(thumb(best), [told.labels[best], `sample ${best}`].filter(Boolean).join(" · "));
      place(event);
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", () => { tip.hidden = true; last?.classList.remove("at"); });
    for (const button of box.querySelectorAll("[data-g]:is(button)")) {
      button.addEventListener("click", () => {
        const on = button.classList.toggle("on");
        for (const other of box.querySelectorAll("button.on")) if (other !== button) other.classList.remove("on");
        for (const dot of dots) dot.classList.toggle("dim", on && dot.dataset.g !== button.dataset.g);
      });
    }
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("code").textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(button.parentElement.querySelector("code"));
        button.textContent = "selected";
      }
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }

  // The part of the page that is being read is marked at the top.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.classList.remove("here");
      links.get(entry.target.id)?.classList.add("here");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("section[id]")) watcher.observe(section);
})();
