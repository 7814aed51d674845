// The worklist's keyboard: one row is selected, and stays selected when rows around it change.

import { isTyping } from "./common.js";

const body = document.getElementById("rows");
const filters = document.getElementById("filters");
const search = document.getElementById("q");
let selected = sessionStorage.getItem("selected") ?? "";

const rows = () => [...body.rows].filter((row) => row.dataset.key);

function select(row, { focus = true } = {}) {
  for (const each of rows()) {
    const is = each === row;
    each.classList.toggle("selected", is);
    each.tabIndex = is ? 0 : -1;
    each.setAttribute("aria-selected", String(is));
  }
  if (!row) return;
  selected = row.dataset.key;
  sessionStorage.setItem("selected", selected);
  if (focus) {
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }
}
function current() {
  return rows().find((row) => row.dataset.key === selected);
}
function restore(focus) {
  const row = current() ?? rows()[0];
  if (row) select(row, { focus });
}
function move(by) {
  const all = rows();
  const place = all.indexOf(current());
  select(all[Math.min(all.length - 1, Math.max(0, place + by))]);
}
function open(row) {
  const link = row?.querySelector("a.open");
  if (link) location.assign(link.href);
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target === search) {
    search.blur();
    restore(true);
    return;
  }
  if (isTyping(event)) return;
  const actions = {
    j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    Home: () => select(rows()[0]), End: () => select(rows().at(-1)),
    "/": () => search.select(),
    n: () => document.querySelector("a[rel=next]")?.click(), p: () => document.querySelector("a[rel=prev]")?.click(),
  };
  if (event.key === "Enter" && !event.target.closest("a, button")) open(current());
  else if (actions[event.key]) actions[event.key]();
  else return;
  event.preventDefault();
});
body.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-key]");
  if (row && !event.target.closest("a")) select(row);
});
body.addEventListener("dblclick", (event) => open(event.target.closest("tr[data-key]")));
document.addEventListener("refreshed", () => restore(false));

// The address holds the filters, and only those that say something.
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  const chosen = new URLSearchParams();
  for (const [name, value] of new FormData(filters)) {
    if (value && !(name === "order" && value === "urgency")) chosen.set(name, value);
  }
  location.assign(chosen.size ? `/?${chosen}` : "/");
});
filters.addEventListener("change", (event) => {
  if (event.target.matches("select")) filters.requestSubmit();
});
sessionStorage.setItem("worklist", location.pathname + location.search);
restore(false);
