// Requests to this service, and the key that goes with them.

const STORED = "loci-key";

/** The key, kept in this tab only; in this page only where the browser stores nothing. */
export const key = {
  text: stored((storage) => storage.getItem(STORED)) ?? "",
  get value() {
    return this.text;
  },
  set value(text) {
    this.text = text;
    stored((storage) => (text ? storage.setItem(STORED, text) : storage.removeItem(STORED)));
    document.dispatchEvent(new Event("loci-key"));
  },
};

function stored(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null; // storage is switched off
  }
}

/** Why a request was refused, in the service's own words. */
export class Problem extends Error {
  constructor({ title, detail, status = 0, field = null }) {
    super(detail);
    this.title = title;
    this.status = status;
    this.field = field;
  }
}

/** Ask the service; `path` is relative to the page, so that a proxy may put it anywhere. */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.value) headers.set("Authorization", `Bearer ${key.value}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "No answer", detail: "the service cannot be reached" });
  }
  if (!response.ok) throw await toProblem(response);
  return response;
}

export const getJSON = async (path, options) => (await request(path, options)).json();

async function toProblem(response) {
  const { status } = response;
  try {
    const body = await response.json();
    return new Problem({ title: body.title, detail: body.detail ?? body.title, status, field: body.field });
  } catch {
    return new Problem({ title: `Error ${status}`, detail: `the service answered with status ${status}`, status });
  }
}

/** Put a picture of the service into an <img>; with a key it is fetched, for an <img> cannot send one. */
export async function showImage(image, path) {
  image.dataset.path = path;
  if (!key.value) {
    image.src = path;
    return;
  }
  try {
    const blob = await (await request(path)).blob();
    if (image.dataset.path !== path) return; // another one is wanted by now
    const url = URL.createObjectURL(blob);
    for (const event of ["load", "error"]) {
      image.addEventListener(event, () => URL.revokeObjectURL(url), { once: true });
    }
    image.src = url;
  } catch {
    if (image.dataset.path === path) image.dispatchEvent(new Event("error"));
  }
}

export const photoPath = (id, kind) => `v1/photos/${encodeURIComponent(id)}/${kind}`;

/** Whatever is no sentence of the service is a fault of this page, and should be seen in the console. */
export function asProblem(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem({ title: "This page failed", detail: String(error.message ?? error) });
}
