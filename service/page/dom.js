// Building blocks of the page. Text only ever goes in as text: nothing here parses HTML.

/** Make an element; `on…` attributes are listeners, null and false leave an attribute out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Show a problem's own sentence, with a way on where there is one. */
export function showProblem(where, problem, ...ways) {
  const title = el("strong", {}, problem.title || "It did not work");
  const box = el("div", { class: "problem", role: "alert" }, title, el("p", {}, sentence(problem.message)));
  const shown = ways.filter(Boolean);
  if (shown.length) box.append(el("div", { class: "actions" }, ...shown));
  where.replaceChildren(box);
}

export function sentence(text) {
  const whole = String(text).trim();
  const start = whole.charAt(0).toUpperCase() + whole.slice(1);
  return /[.!?…]$/.test(start) ? start : `${start}.`;
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

const probe = el("span", { hidden: true });

/** A colour of the style sheet as the scheme at hand makes it, for what is drawn on a canvas. */
export function colour(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}
