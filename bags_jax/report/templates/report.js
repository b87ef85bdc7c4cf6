"use strict";
// Wipes between two pictures of a view, and shows the kernel at the chosen pixel. Without it the page shows all pictures.
(() => {
  const make = (tag, name, parent) => {
    const node = document.createElement(tag);
    node.className = name;
    parent.append(node);
    return node;
  };
  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

  function addWipe(view) {
    const wipe = view.querySelector(".wipe"), stage = wipe.querySelector(".stage");
    const shots = Object.fromEntries([...view.querySelectorAll(".shot")].map((shot) => [shot.dataset.key, shot]));
    const under = make("img", "under", stage), over = make("img", "over", stage);
    make("div", "edge", stage);
    const tags = { left: make("span", "tag left", stage), right: make("span", "tag right", stage) };
    const slider = make("input", "", stage);
    slider.type = "range";
    slider.min = 0;
    slider.max = 100;
    slider.step = 0.5;
    slider.value = 50;
    slider.setAttribute("aria-label", `Share of the left picture of ${view.getAttribute("aria-label")}`);
    const cut = () => {
      stage.style.setProperty("--cut", `${slider.value}%`);
      tags.left.hidden = slider.value < 12;
      tags.right.hidden = slider.value > 88;
    };
    slider.addEventListener("input", cut);
    slider.addEventListener("keydown", (event) => event.stopPropagation());
    cut();
    for (const [side, picture] of [["left", over], ["right", under]]) {
      const select = wipe.querySelector(`select.${side}`);
      const show = () => {
        const shot = shots[select.value];
        picture.src = shot.src;
        picture.alt = shot.alt;
        tags[side].textContent = select.selectedOptions[0].textContent;
      };
      select.addEventListener("change", show);
      show();
    }
    return stage;
  }

  function addKernels(view, stage) {
    const atlas = view.querySelector(".atlas");
    if (!atlas) return;
    view.dataset.hasKernels = "";
    const grid = JSON.parse(atlas.dataset.kernels), canvas = view.querySelector("canvas");
    const [width, height] = getComputedStyle(stage).aspectRatio.split("/").map(Number);
    const spot = make("div", "spot", stage);
    const read = (name, text) => (view.querySelector(`[data-of="${name}"]`).textContent = text);
    let row = 0, column = 0;

    function draw() {
      const pen = canvas.getContext("2d"), n = grid.side;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(atlas, column * n, row * n, n, n, 0, 0, canvas.width, canvas.height);
      const middle = canvas.width / 2, arm = canvas.width / n / 2;
      pen.strokeStyle = "rgba(255,255,255,.8)";
      pen.lineWidth = 1.5;
      pen.strokeRect(middle - arm, middle - arm, 2 * arm, 2 * arm);
      drawRuler(pen, n * grid.pxPerTap);
    }

    function drawRuler(pen, span) {
      const length = [0.5, 1, 2, 5, 10, 20, 50].reduce((best, x) => (x <= span / 3 ? x : best), 0.5);
      const px = (length / span) * canvas.width, y = canvas.height - 20;
      pen.fillStyle = "#fff";
      pen.fillRect(18, y, px, 4);
      pen.font = "24px system-ui, sans-serif";
      pen.fillText(`${length} px`, 18, y - 10);
    }

    function choose(newRow, newColumn) {
      row = clamp(newRow, 0, grid.rows - 1);
      column = clamp(newColumn, 0, grid.columns - 1);
      const i = row * grid.columns + column, x = (column + 0.5) / grid.columns, y = (row + 0.5) / grid.rows;
      const side = grid.side * grid.pxPerTap;
      spot.style.left = `${100 * x}%`;
      spot.style.top = `${100 * y}%`;
      spot.style.width = `${(100 * side) / width}%`;
      spot.style.height = `${(100 * side) / height}%`;
      read("pixel", `${Math.floor(x * width)}, ${Math.floor(y * height)}`);
      read("width", `${grid.widths[i].toFixed(2)} px`);
      read("direction", grid.widths[i] > 0.3 ? `${grid.directions[i]}°` : "none");
      read("mask", grid.masks[i].toFixed(2));
      canvas.dataset.kernel = `${row},${column}`;
      if (atlas.complete && atlas.naturalWidth) draw();
      else atlas.decode().then(draw, () => read("pixel", "picture broken"));
    }

    function click(event) {
      const box = event.currentTarget.getBoundingClientRect();
      const share = (at, from, size, count) => Math.floor(((at - from) / size) * count);
      choose(
        share(event.clientY, box.top, box.height, grid.rows), share(event.clientX, box.left, box.width, grid.columns));
    }

    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    stage.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      choose(row + move[0], column + move[1]);
    });
    for (const picture of [stage, ...view.querySelectorAll(".shot")]) picture.addEventListener("click", click);
    const widest = grid.widths.indexOf(Math.max(...grid.widths));
    choose(Math.floor(widest / grid.columns), widest % grid.columns);
  }

  const views = [...document.querySelectorAll(".view")], ready = new WeakSet();
  function setUp(view) {
    if (ready.has(view)) return;
    ready.add(view);
    addKernels(view, addWipe(view));
  }
  const watcher = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => setUp(entry.target)),
    { rootMargin: "800px" });
  views.forEach((view) => watcher.observe(view));
  addEventListener("beforeprint", () => views.forEach(setUp));
})();
