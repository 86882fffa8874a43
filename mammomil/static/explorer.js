function (id, compute) {
  "use strict";
  // A page may show the same explorer twice; each script takes the first that is not yet alive.
  const root = document.querySelector('[id="' + id + '"]:not([data-alive])');
  if (!root) return;
  root.dataset.alive = "yes";
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const controls = Array.from(root.querySelectorAll("[data-mm]"));
  const svg = root.querySelector(".mm-picture svg");
  const words = root.querySelector(".mm-words");
  const name = (control) => control.id.slice(id.length + 1);
  const place = (control) => (control.type === "checkbox" ? Number(control.checked) : Number(control.value));

  // What scenes.Scene is in Python: the same marks, written the same way.
  function makePen() {
    const marks = [];
    const escape = (text) =>
      String(text).replace(/[&<>"']/g, (c) => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})[c]);
    const n = (value) => value.toFixed(1).replace(/\.0$/, "").replace(/^-0$/, "0");
    const style = (colour, o, stroke) =>
      ' fill="' + escape(o.fill || "none") + '"' +
      (stroke ? ' stroke="' + escape(colour) + '" stroke-width="' + n(stroke) + '"' + (o.dashed ? ' stroke-dasharray="4 3"' : "") : "") +
      (o.opacity !== undefined && o.opacity !== 1 ? ' opacity="' + Number(o.opacity.toPrecision(2)) + '"' : "");
    const size = (x, y, w, h) => 'x="' + n(x) + '" y="' + n(y) + '" width="' + n(w) + '" height="' + n(h) + '"';
    const ink = "currentColor";
    return {
      marks,
      rect: (x, y, w, h, colour = ink, o = {}) =>
        marks.push("<rect " + size(x, y, w, h) + style(colour, o, o.stroke ?? 1.5) + "/>"),
      line: (points, colour = ink, o = {}) =>
        marks.push('<polyline points="' + points.map((p) => n(p[0]) + "," + n(p[1])).join(" ") + '"' + style(colour, o, o.stroke ?? 1.5) + "/>"),
      circle: (x, y, r, colour = ink, o = {}) =>
        marks.push('<circle cx="' + n(x) + '" cy="' + n(y) + '" r="' + n(r) + '"' + style(colour, o, o.stroke ?? 1.5) + "/>"),
      text: (x, y, text, o = {}) =>
        marks.push(
          '<text x="' + n(x) + '" y="' + n(y) + '" font-size="' + n(o.size ?? 13) + '" fill="' +
          escape(o.halo && !o.colour ? "#fff" : o.colour || ink) + '"' + (o.bold ? ' font-weight="bold"' : "") +
          (o.halo ? ' class="mm-halo"' : "") +
          (o.anchor && o.anchor !== "start" ? ' text-anchor="' + escape(o.anchor) + '"' : "") + ">" + escape(text) + "</text>"),
      image: (picture, x, y, w, h, o = {}) =>
        marks.push('<image href="@' + data.pictures[picture] + '" ' + size(x, y, w, h) + ' preserveAspectRatio="none"' + (o.smooth ? "" : ' class="mm-cells"') + "/>"),
      hot: (x, y, r, text, positions) =>
        marks.push('<circle class="mm-hot" cx="' + n(x) + '" cy="' + n(y) + '" r="' + n(r) + '" tabindex="0" role="button" aria-label="' + escape(text) + '" data-set="' + escape(JSON.stringify(positions)) + '"/>'),
      handle: (x, y, drags) =>
        marks.push('<circle class="mm-handle" cx="' + n(x) + '" cy="' + n(y) + '" r="9" data-drag="' + escape(JSON.stringify(drags)) + '"/>'),
    };
  }

  function frame() {
    const places = controls.map(place);
    if (!compute) {
      const [numbers, sentence] = data.frames[places.join(",")];
      return [numbers.map((i) => data.marks[i]).join(""), sentence];
    }
    const values = {};
    controls.forEach((control, i) => (values[name(control)] = data.values[i][places[i]]));
    const pen = makePen();
    const sentence = compute(values, data.data, pen);
    return [pen.marks.join(""), sentence];
  }

  function draw() {
    for (const control of controls) {
      if (control.type !== "range") continue;
      const text = JSON.parse(control.dataset.texts)[Number(control.value)];
      control.setAttribute("aria-valuetext", text);
      control.parentElement.querySelector(".mm-value").textContent = text;
    }
    const [picture, sentence] = frame();
    const active = document.activeElement;
    const chosen = svg.contains(active) ? active.dataset.set : null;
    svg.innerHTML = picture.replace(/@([0-9a-f]{10})/g, (_, key) => data.images[key]);
    svg.setAttribute("aria-label", sentence);
    words.textContent = sentence;
    if (chosen) {
      const again = Array.from(svg.querySelectorAll("[data-set]")).find((mark) => mark.dataset.set === chosen);
      if (again) again.focus();
    }
  }

  // Move controls to positions, as far as they go.
  function move(positions) {
    for (const control of controls) {
      const to = positions[name(control)];
      if (to === undefined) continue;
      if (control.type === "checkbox") control.checked = Boolean(to);
      else if (control.type === "range") control.value = Math.min(Math.max(to, 0), Number(control.max));
      else control.value = to;
    }
    draw();
  }

  const hot = (event) => event.target.closest && event.target.closest("[data-set]");
  svg.addEventListener("click", (event) => {
    if (hot(event)) move(JSON.parse(hot(event).dataset.set));
  });
  svg.addEventListener("keydown", (event) => {
    if (!hot(event) || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    move(JSON.parse(hot(event).dataset.set));
  });

  let drags = null;
  const follow = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const positions = {};
    for (const [control, [axis, origin, step]] of Object.entries(drags))
      positions[control] = Math.round((point[axis] - origin) / step);
    move(positions);
  };
  svg.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest("[data-drag]");
    if (!handle) return;
    event.preventDefault();
    drags = JSON.parse(handle.dataset.drag);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (drags) follow(event);
  });
  for (const end of ["pointerup", "pointercancel"])
    svg.addEventListener(end, () => {
      drags = null;
    });

  for (const control of controls) control.addEventListener("input", draw);
  for (const button of root.querySelectorAll("[data-play]")) {
    const control = controls.find((one) => one.id === button.dataset.play);
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (control.value === control.max) control.value = control.min;
      draw();
      button.textContent = "Stop";
      timer = setInterval(() => {
        if (control.value === control.max) return stop();
        control.value = Number(control.value) + 1;
        draw();
      }, 600);
    });
  }
  // Browsers may restore moved controls when a page is opened again: show what they say.
  draw();
}
