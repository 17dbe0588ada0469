// Keys, dragging, drafts and the sign of life. Every page works without this file.
"use strict";

const main = document.querySelector("main");
const form = document.getElementById("judgement");
const ranking = document.getElementById("ranking");
const help = document.getElementById("help");
const reason = form?.elements.reason;

// ---------------------------------------------------------------------------------------- what was chosen

const cards = () => [...ranking.children];
const select = (card) => card.querySelector("select");

function choice() {
  return form.querySelector("[name=choice]:checked")?.value;
}

function complete() {
  return ranking ? choice() === "bad" || cards().every((card) => select(card).value) : choice() !== undefined;
}

function describe() {
  const line = document.querySelector(".chosen");
  if (!ranking) {
    const words = form.querySelector("[name=choice]:checked + .face .words");
    line.textContent = words ? words.textContent : line.dataset.empty;
    return;
  }
  const groups = new Map();
  for (const card of cards()) {
    const place = choice() === "bad" ? "1" : select(card).value;
    if (place) groups.set(place, [...(groups.get(place) ?? []), card.querySelector(".letter").textContent]);
  }
  const order = [...groups].sort((a, b) => a[0] - b[0]).map(([, letters]) => letters.sort().join(" = "));
  line.textContent = complete() ? order.join(" > ") : line.dataset.empty;
}

// ------------------------------------------------------------------------------------------------- drafts
// One draft is kept: that of the open item of this person and project. It outlives a reload, a lost connection and a closed browser.

const DRAFT = "preferl-draft";

function keepDraft() {
  const values = {
    choice: choice() ?? null,
    ranks: ranking ? Object.fromEntries(cards().map((c) => [c.getAttribute("aria-label"), select(c).value])) : null,
    flagged: form.elements.flagged.checked,
    reason: reason.value,
  };
  localStorage.setItem(DRAFT, JSON.stringify({ item: main.dataset.draft, values }));
}

function restoreDraft() {
  let draft = null;
  try {
    draft = JSON.parse(localStorage.getItem(DRAFT));
  } catch {
    localStorage.removeItem(DRAFT);
  }
  if (draft?.item !== main.dataset.draft) {
    localStorage.removeItem(DRAFT);
    return;
  }
  const { values } = draft;
  for (const input of form.querySelectorAll("[name=choice]")) input.checked = input.value === values.choice;
  if (ranking) for (const card of cards()) select(card).value = values.ranks?.[card.getAttribute("aria-label")] ?? "";
  form.elements.flagged.checked = values.flagged;
  reason.value = values.reason;
}

// --------------------------------------------------------------------------------------------------- keys

function press(key) {
  const target = document.querySelector(`[data-key="${key}"]`);
  if (!target || target.disabled) return false;
  target.click();
  return true;
}

function placeFocused(digit) {
  const all = cards();
  const card = document.activeElement.closest?.("#ranking > li") ?? all[0];
  if (digit > all.length) return;
  select(card).value = String(digit);
  const following = [...all.slice(all.indexOf(card) + 1), ...all].find((other) => !select(other).value);
  (following ?? card).focus();
  changed();
}

function moveFocus(step) {
  const all = cards();
  const at = all.indexOf(document.activeElement.closest?.("#ranking > li"));
  all[(at + step + all.length) % all.length].focus();
}

function submit() {
  // The browser says what is missing.
  form.requestSubmit(form.querySelector("[value=judge]"));
}

document.addEventListener("keydown", (event) => {
  if (event.repeat && !event.target.matches("textarea")) return; // a key that is held is pressed once
  if (event.ctrlKey && event.key === "Enter" && form) return submit();
  if (event.ctrlKey || event.metaKey || event.altKey || help?.open) return;
  if (event.target.matches("textarea, select, input[type=text]")) {
    if (event.key === "Escape") {
      event.target.blur();
      if (ranking) cards()[0].focus();
    }
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let done = true;
  if (key === "?" && help) help.showModal();
  else if (key === "g" && document.querySelector(".guidelines")) document.querySelector(".guidelines").toggleAttribute("open");
  else if (key === "r" && reason) reason.focus();
  else if (key === "Enter" && form && !event.target.matches("button, a, summary")) submit();
  else if (ranking && /^[1-9]$/.test(key)) placeFocused(Number(key));
  else if (ranking && (key === "ArrowDown" || key === "ArrowUp")) moveFocus(key === "ArrowDown" ? 1 : -1);
  else if (/^[0-9sfu]$/.test(key)) done = press(key);
  else done = false;
  if (done) event.preventDefault();
});

// ----------------------------------------------------------------------------------------------- dragging
// The order on the page becomes the ranking: dropped between two cards it has a place of its own, dropped
// onto one it shares that card's place.

function startDrag(card, start) {
  let target = null;
  const clear = () => cards().forEach((c) => c.classList.remove("drop-before", "drop-after", "drop-onto"));
  const move = (event) => {
    event.preventDefault();
    clear();
    const over = document.elementFromPoint(event.clientX, event.clientY)?.closest("#ranking > li");
    if (!over || over === card) return (target = null);
    const { top, height } = over.getBoundingClientRect();
    const part = (event.clientY - top) / height;
    target = { over, how: part < 0.3 ? "before" : part > 0.7 ? "after" : "onto" };
    over.classList.add(`drop-${target.how}`);
  };
  const stop = (event) => {
    for (const [name, listener] of listeners) document.removeEventListener(name, listener);
    clear();
    card.classList.remove("dragging");
    ranking.classList.remove("moving");
    if (event.type === "pointerup" && target) drop(card, target);
  };
  const listeners = [["pointermove", move], ["pointerup", stop], ["pointercancel", stop]];
  for (const [name, listener] of listeners) document.addEventListener(name, listener, { passive: false });
  card.classList.add("dragging");
  ranking.classList.add("moving");
  start.preventDefault();
}

function drop(card, { over, how }) {
  // Groups of equal place, best first; then what has no place yet, in the order of the page. Where nothing
  // has one, the page is the ranking.
  const others = cards().filter((other) => other !== card);
  const untouched = cards().every((other) => !select(other).value);
  const rank = (other) => Number(select(other).value || Infinity);
  const groups = [];
  for (const other of [...others].sort((a, b) => rank(a) - rank(b))) {
    const last = groups.at(-1);
    if (last && rank(other) < Infinity && rank(other) === rank(last[0])) last.push(other);
    else groups.push([other]);
  }
  const at = groups.findIndex((group) => group.includes(over));
  if (how === "onto") groups[at].push(card);
  else groups.splice(how === "before" ? at : at + 1, 0, [card]);
  // What was moved has a place now, and so has all that stands before it.
  const moved = groups.findIndex((group) => group.includes(card));
  let place = 1;
  for (const [i, group] of groups.entries()) {
    const placed = untouched || i <= moved || group.some((member) => select(member).value);
    for (const member of group) {
      ranking.append(member);
      select(member).value = placed ? String(place) : "";
    }
    place += group.length;
  }
  card.focus();
  changed();
}

// -------------------------------------------------------------------------------------------------- start

function demandPlaces() {
  // The server asks for places too; here the browser shows where one is missing.
  if (ranking) for (const card of cards()) select(card).required = choice() !== "bad";
}

function changed() {
  describe();
  demandPlaces();
  keepDraft();
}

if (form) {
  restoreDraft();
  describe();
  demandPlaces();
  form.addEventListener("input", changed);
  // Places are sent in the order in which the page came, wherever dragging has put the cards.
  if (ranking) form.addEventListener("formdata", ({ formData }) => {
    formData.delete("rank");
    const letters = (card) => card.getAttribute("aria-label");
    for (const card of cards().sort((a, b) => letters(a).localeCompare(letters(b)))) formData.append("rank", select(card).value);
  });
  setInterval(() => {
    if (document.visibilityState === "visible") fetch(`/assignments/${main.dataset.assignment}/renew`, { method: "POST" }).catch(() => {});
  }, Number(main.dataset.beat) * 1000);
}
if (ranking) {
  for (const hidden of ranking.querySelectorAll(".handle")) hidden.hidden = false;
  for (const hidden of document.querySelectorAll(".script-only")) hidden.hidden = false;
  ranking.addEventListener("pointerdown", (event) => {
    if (event.target.closest(".handle")) startDrag(event.target.closest("li"), event);
  });
  cards()[0].focus({ preventScroll: true });
}
if (!form) localStorage.removeItem(DRAFT);
if (help) {
  const button = document.getElementById("help-button");
  button.hidden = false;
  button.addEventListener("click", () => help.showModal());
}
