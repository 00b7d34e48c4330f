"use strict";
// The page asks /search and shows what it says. Captions are foreign text: they are set as text, never as markup.

const at = (id) => document.getElementById(id);
const [form, words, category, file, status, answers] =
  ["form", "words", "category", "file", "status", "answers"].map(at);
let picture = null; // the Blob that is searched for
let latest = 0; // only the answer to the latest query is shown

function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

function choose(blob) {
  if (picture) URL.revokeObjectURL(at("preview").src);
  picture = blob;
  at("chosen").hidden = !blob;
  if (blob) at("preview").src = URL.createObjectURL(blob);
  else file.value = "";
}

async function search() {
  const q = words.value.trim();
  if (!q && !picture) {
    say("Type some words, or choose a picture.", true);
    return;
  }
  const number = ++latest;
  say("Searching …");
  const query = new URLSearchParams({ q, top: 20 });
  if (category.value) query.set("category", category.value);
  try {
    const response = await fetch(`search?${query}`, picture ? { method: "POST", body: picture } : {});
    const answer = await response.json();
    if (number !== latest) return;
    if (response.ok) show(answer);
    else say(typeof answer.detail === "string" ? answer.detail : "The query was refused.", true);
  } catch {
    if (number === latest) say("The server does not answer. Is it still running?", true);
  }
}

function show({ answers: found, milliseconds, note }) {
  const ranks = found.map(({ results }) => new Map(results.map((result, rank) => [result.product_id, rank])));
  answers.classList.toggle("two", found.length > 1);
  answers.replaceChildren(...found.map((answer, number) => column(answer, found.length > 1 ? ranks[1 - number] : null)));
  const count = Math.max(...found.map(({ results }) => results.length));
  say((count ? `${count} products in ${milliseconds} ms` : "No product fits.") + (note && ` (${note})`));
}

function column({ name, results }, others) {
  const tiles = results.map((result, rank) => tile(result, rank, others));
  return element("section", {}, [element("h2", { textContent: name }), element("ol", {}, tiles)]);
}

function tile(result, rank, others) {
  const caption = result.caption || result.product_id;
  const facts = element("p", { className: "facts", textContent: `${rank + 1}. ${result.score.toFixed(3)} · ${result.category || "no category"}` });
  const like = element("button", { type: "button", textContent: "More like this" });
  like.addEventListener("click", () => moreLike(result));
  const made = element("li", {}, [
    element("img", { src: result.picture, alt: caption, loading: "lazy" }),
    facts,
    element("p", { className: "caption", textContent: caption, title: caption }),
    like,
  ]);
  like.setAttribute("aria-label", `More like ${caption}`);
  const mark = others ? difference(rank, others.get(result.product_id)) : "";
  if (mark) {
    facts.append(" ", element("span", { className: "mark", textContent: mark }));
    made.classList.toggle("alone", !others.has(result.product_id));
  }
  return made;
}

function difference(rank, other) {
  if (other === undefined) return "only here";
  if (other === rank) return "";
  return other > rank ? `▲ ${other - rank}` : `▼ ${rank - other}`;
}

async function moreLike(result) {
  choose(await (await fetch(result.picture)).blob());
  words.value = "";
  scrollTo({ top: 0 });
  submit();
}

function submit() {
  const query = new URLSearchParams();
  if (words.value.trim()) query.set("q", words.value.trim());
  if (category.value) query.set("category", category.value);
  history.pushState(null, "", query.size ? `?${query}` : location.pathname);
  search();
}

function fromAddress() {
  const query = new URLSearchParams(location.search);
  words.value = query.get("q") ?? "";
  category.value = query.get("category") ?? "";
  if (words.value) search();
}

async function start() {
  const about = await (await fetch("about")).json();
  at("about").textContent = about.indexes
    .map(({ name, model, products, pictures }) => `${name}: ${products.toLocaleString("en")} products, ${pictures.toLocaleString("en")} pictures, ${model}`)
    .join(" — ");
  category.append(...about.categories.map((name) => element("option", { value: name, textContent: name })));
  fromAddress();
}

form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
category.addEventListener("change", () => { if (words.value.trim() || picture) submit(); });
file.addEventListener("change", () => { if (file.files[0]) { choose(file.files[0]); submit(); } });
at("remove").addEventListener("click", () => { choose(null); words.focus(); });
addEventListener("popstate", fromAddress);
addEventListener("paste", (event) => taken(event.clipboardData));
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  taken(event.dataTransfer);
});

function taken(transfer) {
  const image = [...transfer.files].find((each) => each.type.startsWith("image/"));
  if (image) { choose(image); submit(); }
}

start();
