"use strict";
const root = document.documentElement;
try { const kept = localStorage.getItem("lumina-theme"); if (kept) root.dataset.theme = kept; } catch { /* browsers may deny storage to local files */ }
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("lumina-theme", root.dataset.theme); } catch { /* see above */ }
});
for (const choice of document.querySelectorAll("select[data-shows]")) {
  const show = () => {
    root.toggleAttribute(`data-one-${choice.dataset.shows}`, choice.value !== "");
    for (const part of document.querySelectorAll(`[data-${choice.dataset.shows}]`)) {
      part.hidden = choice.value !== "" && part.dataset[choice.dataset.shows] !== choice.value;
    }
  };
  choice.addEventListener("change", show);
  show();
}
