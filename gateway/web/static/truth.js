// Agree, disagree, ungradable: one key each. What is said goes with what was shown.

import { isTyping, refresh } from "./common.js";

const token = document.querySelector("meta[name=csrf-token]")?.content;

async function say(form, verdict) {
  const fields = Object.fromEntries(new FormData(form));
  const output = form.querySelector("output");
  const buttons = [...form.querySelectorAll("button")];
  buttons.forEach((button) => { button.disabled = true; });
  output.className = "";
  output.textContent = "";
  try {
    const answer = await fetch(form.dataset.address, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...(token && { "X-CSRF-Token": token }) },
      body: JSON.stringify({ ...fields, version: Number(fields.version), verdict }),
    });
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(said.error ?? answer.statusText);
    output.textContent = said.taken === "unchanged" ? "Said before." : "Taken down.";
    form.elements.comment.value = "";
    if (form.contains(document.activeElement)) document.activeElement.blur();
    await refresh();
  } catch (error) {
    output.className = "warn";
    output.textContent = error.message;
  } finally {
    buttons.forEach((button) => { button.disabled = false; });
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("form.read button");
  if (button) say(button.form, button.value);
});
// Enter in the comment chooses no verdict for the reader.
document.addEventListener("submit", (event) => {
  if (event.target.closest("form.read")) event.preventDefault();
});

// The keys speak of the first finding of the image that is shown.
document.addEventListener("keydown", (event) => {
  if (isTyping(event) || event.repeat || !["a", "d", "u"].includes(event.key)) return;
  const button = document.querySelector(`.image-panel:not([hidden]) form.read button[data-key="${event.key}"]`);
  if (!button || button.disabled) return;
  event.preventDefault();
  say(button.form, button.value);
});
