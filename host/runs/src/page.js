"use strict";
// Values under the pointer, or under the arrow keys of a focused chart. Handlers sit on the document, so that charts can be replaced.
(() => {
  const chartOf = (e) => e.target.closest ? e.target.closest(".chart[data-series]") : null;
  const show = (chart, x) => {
    const frame = JSON.parse(chart.dataset.frame), series = JSON.parse(chart.dataset.series);
    let step = null;
    for (const s of series) for (const [px] of s.points) if (step === null || Math.abs(px - x) < Math.abs(step - x)) step = px;
    if (step === null) return;
    chart.dataset.at = step;
    const at = frame.left + (step - frame.x0) / (frame.x1 - frame.x0) * (frame.right - frame.left);
    chart.querySelector(".cross").setAttribute("d", `M${at} ${frame.top}V${frame.bottom}`);
    const values = [];
    for (const s of series) {
      const point = s.points.find(([px]) => px === step);
      if (point) values.push(`${s.name} ${Number(point[1].toPrecision(5))}`);
    }
    chart.querySelector("output").textContent = `step ${step}: ${values.join(", ")}`;
  };
  document.addEventListener("pointermove", (e) => {
    const chart = chartOf(e), svg = chart && chart.querySelector("svg");
    if (!svg) return;
    const frame = JSON.parse(chart.dataset.frame), box = svg.getBoundingClientRect();
    const x = (e.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    show(chart, frame.x0 + (x - frame.left) / (frame.right - frame.left) * (frame.x1 - frame.x0));
  });
  document.addEventListener("keydown", (e) => {
    const chart = chartOf(e);
    if (!chart || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(e.key)) return;
    e.preventDefault();
    const steps = [...new Set(JSON.parse(chart.dataset.series).flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
    let i = steps.indexOf(Number(chart.dataset.at ?? NaN));
    i = e.key === "Home" ? 0 : e.key === "End" || i < 0 ? steps.length - 1 : e.key === "ArrowLeft" ? Math.max(0, i - 1) : Math.min(steps.length - 1, i + 1);
    show(chart, steps[i]);
  });
})();
