// Elements, made once and then changed in place: what has the focus keeps it, and screen readers hear changes only.

const SVG = "http://www.w3.org/2000/svg";

function dressed(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) put(element, name, value);
  element.append(...children);
  return element;
}

export const make = (tag, attributes = {}, ...children) => dressed(document.createElement(tag), attributes, children);
export const draw = (tag, attributes = {}, ...children) => dressed(document.createElementNS(SVG, tag), attributes, children);

export function put(element, name, value) {
  const text = value === null || value === undefined || value === false ? null : value === true ? "" : String(value);
  if (element.getAttribute(name) === text) return;
  if (text === null) element.removeAttribute(name);
  else element.setAttribute(name, text);
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A list of parts, one per key, in the order given: made by `create`, changed by `update`, removed when its key is gone.
export class Parts {
  constructor(parent, create) {
    this.parent = parent;
    this.create = create;
    this.known = new Map();
  }

  show(items, keyOf, update) {
    const gone = new Set(this.known.keys());
    let before = null;
    for (const item of items) {
      const key = keyOf(item);
      let part = this.known.get(key);
      if (part === undefined) {
        part = this.create(item);
        this.known.set(key, part);
      }
      gone.delete(key);
      update(part, item);
      const next = before === null ? this.parent.firstChild : before.nextSibling;
      if (part.element !== next) this.parent.insertBefore(part.element, next);
      before = part.element;
    }
    for (const key of gone) {
      this.known.get(key).element.remove();
      this.known.delete(key);
    }
  }
}
