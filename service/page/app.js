// Starts the page: what the service offers, which part is shown, whether it is ready, and the key.

import { Add } from "./add.js";
import { asProblem, getJSON, key } from "./api.js";
import { forgetPlaces, noteSnapshot } from "./collection.js";
import { byId, el, sentence } from "./dom.js";
import { Find } from "./find.js";
import { count } from "./format.js";
import { Places } from "./places.js";

const AGAIN_MS = 3000;
const VIEWS = ["find", "places", "add"];
const TITLES = { find: "loci", places: "Places · loci", add: "Add · loci" };

let views;
let retry;

async function start() {
  document.documentElement.classList.toggle("touch", navigator.maxTouchPoints > 0);
  const settings = await getJSON("page/settings.json");
  byId("docs-link").hidden = !settings.docs;
  const find = new Find(settings, wayOn);
  const searchHere = (place) => {
    find.filters.choosePlace(place.id);
    location.hash = "#find";
  };
  views = { find, places: new Places(settings, searchHere, wayOn), add: new Add(settings, wayOn, askKey) };
  addEventListener("hashchange", route);
  document.addEventListener("loci-key", refresh);
  document.addEventListener("loci-changed", refresh);
  keyDialog();
  for (const event of ["dragover", "drop"]) addEventListener(event, keepPage);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("main").focus();
  });
  route();
  await refresh();
}

/** A file dropped where none is taken must not replace the page. */
function keepPage(event) {
  if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
}

/** Show the part of the page that the address names. */
function route() {
  const [wanted, id] = location.hash.slice(1).split("/");
  const name = VIEWS.includes(wanted) ? wanted : "find";
  for (const other of VIEWS) byId(`view-${other}`).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = TITLES[name];
  views[name].show?.(id ? decoded(id) : null);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null; // an address that was cut
  }
}

/** Learn what is loaded; while nothing is, say why and look again. */
async function refresh() {
  clearTimeout(retry);
  const banner = byId("banner");
  try {
    showIndex(await getJSON("page/index.json"));
    if (!banner.hidden) {
      banner.hidden = true;
      forgetPlaces();
      route();
    }
  } catch (error) {
    const problem = asProblem(error);
    banner.hidden = false;
    const title = problem.status === 503 ? "Not ready yet" : problem.title;
    const way = wayOn(problem);
    banner.replaceChildren(el("strong", {}, title), ` ${sentence(problem.message)} `, ...(way ? [way] : []));
    if (problem.status === 503 || problem.status === 0) retry = setTimeout(refresh, AGAIN_MS);
  }
}

function showIndex(index) {
  noteSnapshot(index.snapshot);
  for (const name of ["photos", "places", "dim"]) byId(`number-${name}`).textContent = count(index[name]);
  byId("foot-model").textContent = `Model ${index.model.slice(0, 16)}, snapshot ${index.snapshot}`;
}

/** A way on from a refusal: another key, where that is what was missing. */
function wayOn(problem) {
  if (problem.status !== 401 && problem.status !== 403) return null;
  const enter = () => askKey(sentence(problem.message));
  return el("button", { type: "button", class: "button", onclick: enter }, "Enter a key");
}

const KEY_WHY = byId("key-why").textContent;

function askKey(why = KEY_WHY) {
  byId("key-why").textContent = why;
  byId("key-input").value = key.value;
  byId("key-forget").hidden = !key.value;
  byId("key-dialog").returnValue = "cancel";
  byId("key-dialog").showModal();
}

function keyDialog() {
  const dialog = byId("key-dialog");
  const button = byId("key-button");
  const show = () => {
    button.classList.toggle("held", Boolean(key.value));
    button.textContent = key.value ? "Key in use" : "Key";
  };
  button.addEventListener("click", () => askKey());
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "use") key.value = byId("key-input").value.trim();
    if (dialog.returnValue === "forget") key.value = "";
    byId("key-input").value = "";
  });
  document.addEventListener("loci-key", show);
  show();
}

start().catch((error) => {
  const problem = asProblem(error);
  byId("banner").hidden = false;
  byId("banner").textContent = sentence(problem.message);
});
