"use strict";
const find = (name) => document.getElementById(name);
const all = [...document.querySelectorAll("figure")];
const total = find("count").textContent;
let shown = all, open = null;

function show(figure) {
  open = figure;
  const small = figure.querySelector("img");
  find("large").src = small.src;
  find("large").alt = small.alt;
  find("details").replaceChildren(...figure.querySelector(".details").cloneNode(true).childNodes);
  if (!find("dialog").open) find("dialog").showModal();
}

function move(by) {
  const place = shown.indexOf(open) + by;
  if (shown.length) show(shown[(place + shown.length) % shown.length]);
}

async function copy(button) {
  const text = button.parentElement.querySelector(".command").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.parentElement.querySelector(".command"));
    button.textContent = "Selected: copy it with the keyboard";
  }
}

function filter() {
  const found = find("filter").value.toLowerCase().match(/"[^"]*"?|[^\s"]+/g) || [];
  const words = found.map((word) => word.replaceAll('"', ""));
  shown = all.filter((figure) => {
    const text = figure.dataset.words;
    figure.hidden = !words.every((word) => text.includes(word));
    return !figure.hidden;
  });
  find("count").textContent = shown.length === all.length ? total : `${shown.length} of ${total}`;
  find("none").hidden = shown.length > 0;
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("lumina-theme", name); } catch { /* browsers may block storage for local files */ }
}

for (const figure of all) {
  figure.querySelector("a").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(figure);
  });
}
find("before").addEventListener("click", () => move(-1));
find("after").addEventListener("click", () => move(1));
find("close").addEventListener("click", () => find("dialog").close());
find("dialog").addEventListener("click", (event) => {
  if (event.target === find("dialog")) find("dialog").close();
  if (event.target.classList.contains("copy")) copy(event.target);
});
find("dialog").addEventListener("close", () => open && open.querySelector("a").focus());
find("filter").addEventListener("input", filter);
find("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  theme(dark ? "light" : "dark");
});
document.addEventListener("keydown", (event) => {
  if (event.target.id === "filter" && event.key !== "Escape") return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (find("dialog").open && step) move(step);
  else if (step && shown.length) {
    const place = shown.findIndex((figure) => figure.contains(document.activeElement));
    shown[(place + step + shown.length) % shown.length].querySelector("a").focus();
  } else if (event.key === "/" && !find("dialog").open) {
    event.preventDefault();
    find("filter").focus();
  }
});
try { if (localStorage.getItem("lumina-theme")) theme(localStorage.getItem("lumina-theme")); } catch { /* as above */ }
filter();
