// Lines over two pictures, between what both of them show.

const SVG = "http://www.w3.org/2000/svg";
const HUES = [170, 410]; // of the leftmost match and the rightmost, so that a line can be told from the next

export class Lines {
  #matches = [];

  /** Draw into `svg`, which lies over both pictures; again whenever their size changes. */
  constructor(svg, left, right) {
    this.svg = svg;
    this.pictures = [left, right];
    const resized = new ResizeObserver(() => this.#draw());
    for (const node of [svg, left, right]) resized.observe(node);
    for (const picture of this.pictures) picture.addEventListener("load", () => this.#draw());
  }

  /** Show matches, each [x, y, x, y] as shares of the pictures' widths and heights; none: no line. */
  show(matches) {
    this.#matches = matches;
    this.#draw();
  }

  #draw() {
    this.svg.replaceChildren();
    if (!this.#matches.length || !this.pictures.every(visible)) return;
    const { left, top } = this.svg.getBoundingClientRect();
    const [from, to] = this.pictures.map((picture) => drawn(picture, left, top));
    const inOrder = this.#matches.toSorted((one, other) => one[0] - other[0]);
    inOrder.forEach(([qx, qy, px, py], number) => {
      const colour = `hsl(${mix(...HUES, number / inOrder.length)} 90% 62%)`;
      const [x1, y1, x2, y2] = [...from(qx, qy), ...to(px, py)];
      this.svg.append(
        shape("line", { x1, y1, x2, y2, stroke: colour }),
        shape("circle", { cx: x1, cy: y1, r: 3, fill: colour }),
        shape("circle", { cx: x2, cy: y2, r: 3, fill: colour }),
      );
    });
  }
}

const visible = (picture) => picture.naturalWidth && picture.offsetParent;

const mix = (first, last, share) => first + (last - first) * share;

/** From shares of a picture to where they are drawn: `object-fit: contain` leaves bars beside it. */
function drawn(picture, left, top) {
  const box = picture.getBoundingClientRect();
  const scale = Math.min(box.width / picture.naturalWidth, box.height / picture.naturalHeight);
  const [width, height] = [scale * picture.naturalWidth, scale * picture.naturalHeight];
  const [x, y] = [box.left - left + (box.width - width) / 2, box.top - top + (box.height - height) / 2];
  return (across, down) => [x + across * width, y + down * height];
}

function shape(kind, attributes) {
  const node = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
