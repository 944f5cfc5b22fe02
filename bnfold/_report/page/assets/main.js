/* Puts the parts together: the tools, the search, the first look. */

/** @param {string} text @param {string} label @param {() => void} act */
function tool(text, label, act) {
  const made = html("button", { type: "button", "aria-label": label, title: label }, text);
  made.addEventListener("click", act);
  byId("tools").append(made);
}
tool("+", "Larger", () => zoom(1.25));
tool("−", "Smaller", () => zoom(0.8));
tool("Fit", "The whole network", fit);
tool("Open all", "Open all groups", () => { for (const g of outward) opened.add(g); inner.clear(); replace(); home(); });
tool("Close all", "Close all groups", () => { opened.clear(); opened.add(0); inner.clear(); replace(); home(); });

const query = /** @type {HTMLInputElement} */ (byId("query"));
/** @type {number[]} */
let hits = [];
let turn = -1;
function search() {
  const wanted = query.value.trim().toLowerCase();
  hits = [];
  for (let n = 0; wanted && n < count; n++) {
    const kept = keptAt.get(n);
    if (nameOf(n).toLowerCase().includes(wanted) || opOf(n).toLowerCase().includes(wanted) || (kept && fate[n] !== "gone" && kept.code.includes(wanted))) hits.push(n);
  }
  turn = -1;
  found = new Set(hits.map(shown));
  byId("hits").textContent = wanted ? (hits.length ? many(hits.length, "hit") : "no hit") : "";
  drawn.k = 0;
  draw();
}
/** @param {number} by */
function nextHit(by) {
  if (!hits.length) return;
  turn = (turn + by + hits.length) % hits.length;
  choose(hits[turn], true);
  found = new Set(hits.map(shown));
  byId("hits").textContent = `${grouped(turn + 1)} of ${grouped(hits.length)}`;
}
query.addEventListener("input", search);
query.addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); nextHit(event.shiftKey ? -1 : 1); }
  if (event.key === "Escape") { query.value = ""; search(); query.blur(); }
});
document.addEventListener("keydown", (event) => {
  const busy = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !busy && !event.ctrlKey && !event.metaKey) { event.preventDefault(); query.focus(); query.select(); }
});

/** Give the picture what the headline leaves of the window. */
function rise() {
  const top = byId("stage").getBoundingClientRect().top + window.scrollY;
  document.documentElement.style.setProperty("--above", `${Math.round(top + 14)}px`);
}

headline();
rise();
openFirst(60);
replace();
home();
tell(null);
evidence();
tableOfAll();
closing();
for (const n of wrong) reveal(n);
if (wrong.size) { replace(); goTo([...wrong][0]); }
let width = window.innerWidth;
window.addEventListener("resize", () => { rise(); drawn.k = 0; drawMap(); if (width !== window.innerWidth) { width = window.innerWidth; home(); } draw(); });
window.addEventListener("beforeprint", () => { home(); drawNow(); });
document.documentElement.dataset.drawn = "true";
