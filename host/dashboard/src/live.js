"use strict";
// Brings a page up to date while it is looked at. What has the focus or is open stays so.
(() => {
  const address = document.body.dataset.live, status = document.getElementById("status");
  for (const form of document.querySelectorAll("form.view")) form.addEventListener("change", () => form.requestSubmit());
  if (!address) return;
  const shown = new Map();
  let tag = null;
  const place = (id, html) => {
    if (shown.get(id) === html) return;
    const old = document.getElementById(id);
    if (!old) return;
    const focused = old.contains(document.activeElement) ? document.activeElement.closest("[id]") : null;
    const at = [...old.querySelectorAll(".chart[data-at]")].map((c) => c.id);
    if (at.length && old.matches(":hover")) return;
    shown.set(id, html);
    const template = document.createElement("template");
    template.innerHTML = html;
    old.replaceWith(template.content);
    if (focused && focused.id) document.getElementById(focused.id)?.focus({ preventScroll: true });
  };
  const update = async () => {
    const began = performance.now();
    try {
      const answer = await fetch(address, { headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag");
        const template = document.createElement("template");
        template.innerHTML = await answer.text();
        for (const part of template.content.children) if (part.id) place(part.id, part.outerHTML);
        if (status) status.textContent = `as of ${new Date().toLocaleTimeString()}`;
      } else if (answer.status !== 304 && status) status.textContent = `no answer (${answer.status})`;
    } catch {
      if (status) status.textContent = "the dashboard does not answer; is it still running?";
    }
    // Long runs take longer to draw: no more than a fifth of the time goes into that.
    setTimeout(tick, Math.max(1000, 5 * (performance.now() - began)));
  };
  const tick = () => document.hidden ? document.addEventListener("visibilitychange", update, { once: true }) : update();
  setTimeout(tick, 1000);
})();
