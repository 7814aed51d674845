// What every page does: theme, list of keys, times, forms, and keeping itself up to date.

const live = document.getElementById("live");

// --- theme ---
function toggleTheme() {
  const theme = document.documentElement.dataset.theme === "light" ? "dark" : "light";
  document.documentElement.dataset.theme = theme;
  document.cookie = `theme=${theme}; path=/; max-age=31536000; samesite=strict`;
}
document.getElementById("theme").addEventListener("click", toggleTheme);

// --- list of keys ---
const keys = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => keys.showModal());

export function isTyping(event) {
  return event.ctrlKey || event.metaKey || event.altKey || keys.open ||
    (event.target instanceof Element && event.target.closest("input:not([type=range]), select, textarea") !== null);
}

document.addEventListener("keydown", (event) => {
  if (isTyping(event)) return;
  if (event.key === "?") keys.showModal();
  else if (event.key === "t") toggleTheme();
  else return;
  event.preventDefault();
});

// --- times ---
function age(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}
function updateTimes() {
  for (const element of document.querySelectorAll("time.since")) {
    const text = age((Date.now() - Date.parse(element.dateTime)) / 1000);
    if (element.textContent !== text) element.textContent = text;
  }
}
updateTimes();
setInterval(updateTimes, 5000);

// --- log-in ---
const token = document.querySelector("meta[name=csrf-token]")?.content;
function logIn() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}
// Keys and the mouse keep a session from ending, also where they ask nothing of the gateway.
let saidAt = Date.now();
async function stillHere() {
  if (!token || Date.now() - saidAt < 60000) return;
  saidAt = Date.now();
  const answer = await fetch("/api/session").catch(() => null);
  if (answer?.status === 401) logIn();
}
for (const kind of ["keydown", "pointerdown", "wheel"]) document.addEventListener(kind, stillHere, { passive: true });
const user = document.getElementById("user");
document.addEventListener("click", (event) => {
  if (user?.open && !user.contains(event.target)) user.open = false;
});

// --- changes ---
async function post(address, body) {
  const answer = await fetch(address, {
    method: "POST", headers: { "Content-Type": "application/json", ...(token && { "X-CSRF-Token": token }) },
    body: JSON.stringify(body ?? {}),
  });
  if (answer.status === 401) logIn();
  if (!answer.ok) throw new Error((await answer.json()).error ?? answer.statusText);
  await refresh();
}
document.addEventListener("click", async (event) => {
  const button = event.target instanceof Element ? event.target.closest("button[data-post]") : null;
  if (!button) return;
  button.disabled = true;
  try {
    await post(button.dataset.post);
  } catch (error) {
    button.insertAdjacentElement("afterend", Object.assign(document.createElement("small"), {
      className: "warn", textContent: error.message,
    }));
  } finally {
    button.disabled = false;
  }
});
document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form.step");
  if (!form) return;
  event.preventDefault();
  const step = event.submitter?.value ?? "acknowledge";
  const body = Object.fromEntries(new FormData(form));
  if (step === "close" && !body.cause.trim()) {
    form.querySelector("output").textContent = "Say the cause to close it.";
    form.elements.cause.focus();
    return;
  }
  document.activeElement?.blur();
  try {
    await post(`/api/alarms/${form.dataset.alarm}/${step}`, { by: body.by ?? "", cause: body.cause });
  } catch (error) {
    form.querySelector("output").textContent = error.message;
  }
});

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form.send");
  if (!form) return;
  event.preventDefault();
  const body = Object.fromEntries(new FormData(form));
  document.activeElement?.blur();
  try {
    await post(form.dataset.address, body);
  } catch (error) {
    form.querySelector("output").textContent = error.message;
  }
});

// --- kept up to date ---
function swapRows(body, fresh) {
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const focused = document.activeElement?.closest?.("tr")?.dataset.key;
  [...fresh.rows].forEach((row, place) => {
    const old = known.get(row.dataset.key);
    const kept = old?.dataset.digest === row.dataset.digest ? old : document.adoptNode(row);
    if (!old) kept.classList.add("arrived");
    if (old && kept !== old) old.replaceWith(kept);
    if (body.rows[place] !== kept) body.insertBefore(kept, body.rows[place] ?? null);
    known.delete(row.dataset.key);
  });
  for (const gone of known.values()) gone.remove();
  if (focused && document.activeElement === document.body) {
    [...body.rows].find((row) => row.dataset.key === focused)?.focus({ preventScroll: true });
  }
}

let busy = false;
let again = false;
export async function refresh() {
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html", "X-Background": "1" } });
    if (answer.redirected) {
      location.assign(answer.url); // the session has ended
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const element of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(element.id);
      if (!fresh) continue;
      if (element.dataset.live === "rows") swapRows(element, fresh);
      else if (!element.contains(document.activeElement?.closest("input"))) swapContent(element, fresh);
    }
    document.dispatchEvent(new CustomEvent("refreshed", { detail: page }));
    updateTimes();
    live.textContent = "live";
    live.className = "live on";
  } catch {
    live.textContent = "not up to date";
    live.className = "live off";
  } finally {
    busy = false;
    if (again) {
      again = false;
      refresh();
    }
  }
}
function swapContent(element, fresh) {
  const content = fresh.innerHTML;
  if (element.dataset.content === content) return;
  element.dataset.content = content;
  const focusedPost = document.activeElement?.dataset?.post;
  element.replaceChildren(...fresh.childNodes);
  if (focusedPost) element.querySelector(`[data-post="${focusedPost}"]`)?.focus({ preventScroll: true });
}

function changed() {
  if (!document.hidden) refresh();
}
let events = null;
function listen() {
  events = new EventSource("/api/events");
  events.addEventListener("worklist", changed);
  events.onerror = () => {
    live.textContent = "not connected";
    live.className = "live off";
    // A refusal ends the stream for good, unlike a connection that was lost; the page itself then tells why.
    if (events?.readyState === EventSource.CLOSED) refresh();
  };
}
function hush() {
  events?.close();
  events = null;
}
if (document.querySelector("[data-live]")) {
  if (!document.hidden) listen();
  // A browser opens six connections to one host at most: pages that nobody sees hold none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hush();
    else if (!events) listen();
  });
  window.addEventListener("pagehide", hush);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted && !events) listen();
  });
  if (document.querySelector("[data-live=poll]")) setInterval(changed, 5000);
} else {
  live.hidden = true;
}
