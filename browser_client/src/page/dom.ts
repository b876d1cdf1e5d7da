/** Builds elements; text goes in as text nodes only, so that nothing from outside becomes markup. */

type Child = Node | string;
type Attributes = Readonly<Record<string, string | number | boolean>>;

const SVG = 'http://www.w3.org/2000/svg';

/** An HTML element; an attribute that is `false` is left out. */
export function html<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled<E extends Element>(element: E, attributes: Attributes, children: Child[]): E {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children);
  return element;
}

/** The element of the page with this id. */
export function byId<E extends HTMLElement = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element #${id}`);
  return element as E;
}

/** A bar that is `share` full, 0 to 1, with an optional mark. */
export function bar(label: string, share: number, mark: number | null = null): HTMLElement {
  const fill = html('div', { class: 'fill' });
  fill.style.width = percent(share);
  const track = html(
    'div',
    {
      class: 'bar',
      role: 'progressbar',
      'aria-label': label,
      'aria-valuemin': 0,
      'aria-valuemax': 100,
      'aria-valuenow': Math.round(100 * share),
    },
    fill,
  );
  if (mark !== null && mark < 1) {
    const tick = html('div', { class: 'mark' });
    tick.style.left = percent(mark);
    track.append(tick);
  }
  return track;
}

/** A number with what it counts. */
export function figure(value: string, caption: string): HTMLElement {
  return html('div', { class: 'figure' }, html('strong', {}, value), html('span', {}, caption));
}

export function percent(share: number, digits = 0): string {
  return `${(100 * share).toFixed(digits)}%`;
}
