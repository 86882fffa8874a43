function (id) {
  "use strict";
  // A page may show the same explorer twice; each script takes the first that is not yet alive.
  const root = document.querySelector('[id="' + id + '"]:not([data-alive])');
  if (!root) return;
  root.dataset.alive = "yes";
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const controls = Array.from(root.querySelectorAll("[data-mm]"));
  const svg = root.querySelector(".mm-picture svg");
  const words = root.querySelector(".mm-words");
  const place = (control) => (control.type === "checkbox" ? Number(control.checked) : Number(control.value));

  function draw() {
    for (const control of controls) {
      if (control.type !== "range") continue;
      const text = JSON.parse(control.dataset.texts)[Number(control.value)];
      control.setAttribute("aria-valuetext", text);
      control.parentElement.querySelector(".mm-value").textContent = text;
    }
    const [picture, sentence] = data.frames[controls.map(place).join(",")];
    svg.innerHTML = picture.replace(/@([0-9a-f]{10})/g, (_, key) => data.images[key]);
    svg.setAttribute("aria-label", sentence);
    words.textContent = sentence;
  }

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
