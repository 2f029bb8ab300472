// Everything on the page can be read without this: it links the views, sorts, and shows what is pointed at.
(() => {
  "use strict";
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  const marked = [...document.querySelectorAll("[data-model]")];
  let kept = null; // the model that stays marked until Escape or a second Enter

  function light(name) {
    root.classList.toggle("lit", name !== null);
    for (const element of marked) element.classList.toggle("on", element.dataset.model === name);
    for (const point of document.querySelectorAll(".point"))
      point.setAttribute("aria-pressed", String(kept !== null && point.dataset.model === kept));
  }

  function keep(name) {
    kept = kept === name ? null : name;
    light(kept ?? name);
  }

  function showTip(element, x, y) {
    tip.textContent = element.dataset.tip; // as text: a name is never markup
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? Math.max(8, y - height - 14) : y + 18}px`;
  }

  let [x, y] = [-1, -1]; // where the pointer is: what lies under it changes when the page scrolls

  function pointAt(element) {
    const told = element?.closest?.("[data-tip]");
    if (told) showTip(told, x, y);
    else if (!document.activeElement?.matches?.(".point:focus-visible")) tip.hidden = true;
    light(kept ?? element?.closest?.("[data-model]")?.dataset.model ?? null);
  }
  document.addEventListener("pointermove", (event) => {
    [x, y] = [event.clientX, event.clientY];
    pointAt(event.target);
  });
  document.documentElement.addEventListener("pointerleave", () => { tip.hidden = true; light(kept); });
  document.addEventListener("scroll", () => pointAt(document.elementFromPoint(x, y)), { passive: true });

  document.addEventListener("focusin", (event) => {
    const point = event.target.closest?.(".point");
    if (!point) return;
    light(kept ?? point.dataset.model);
    if (point.matches(":focus-visible")) {
      const box = point.querySelector(".target").getBoundingClientRect();
      showTip(point, box.right - 14, box.bottom - 18);
    }
  });
  document.addEventListener("focusout", (event) => {
    if (event.target.closest?.(".point")) { tip.hidden = true; light(kept); }
  });

  document.addEventListener("click", (event) => {
    const element = event.target.closest?.(".point, tbody tr[data-model]");
    if (element) keep(element.dataset.model);
    else if (kept !== null && !event.target.closest?.("button, label, summary, a")) keep(kept);
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { kept = null; light(null); tip.hidden = true; return; }
    const point = event.target.closest?.(".point");
    if (!point) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); keep(point.dataset.model); return; }
    const points = [...point.parentNode.querySelectorAll(".point")];
    const at = points.indexOf(point);
    const next = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: points.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const target = points[(next + points.length) % points.length];
    point.tabIndex = -1;
    target.tabIndex = 0;
    target.focus({ focusVisible: true });
  });

  // One condition at a time: the whole page follows the choice, and the address holds it.
  const choices = [...document.querySelectorAll("[name=condition] option, input[name=condition]")];

  function choose(choice) {
    for (const element of document.querySelectorAll("[data-condition]"))
      element.hidden = !element.dataset.condition.split(" ").includes(choice.value);
    if ("checked" in choice) choice.checked = true;
    else choice.selected = true;
  }

  function chooseByAddress() {
    const key = location.hash.slice(1);
    const choice = choices.find((item) => item.dataset.key === key);
    if (!choice) return;
    choose(choice);
    document.getElementById(key)?.scrollIntoView();
  }
  for (const control of document.querySelectorAll("[name=condition]")) {
    control.addEventListener("change", () => {
      const choice = control.selectedOptions?.[0] ?? control;
      choose(choice);
      history.replaceState(null, "", `#${choice.dataset.key}`);
    });
    if (control.selectedOptions) choose(control.selectedOptions[0]); // a reload keeps the choice
    else if (control.checked) choose(control);
  }
  addEventListener("hashchange", chooseByAddress);
  chooseByAddress();

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const code = button.parentNode.querySelector("code");
      getSelection().selectAllChildren(code); // where the clipboard is refused, the text is at least selected
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch { button.textContent = "Selected"; }
    });
  }

  // What is wider than the screen says so.
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) target.classList.toggle("wider", target.scrollWidth > target.clientWidth + 1);
  });
  for (const box of document.querySelectorAll(".scroll")) watch.observe(box);

  function sortBy(table, column, descending) {
    const body = table.tBodies[0];
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // not measured: last
      const order = column === 0 ? x.localeCompare(y, undefined, { numeric: true }) : Number(x) - Number(y);
      return descending ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sortBy(table, column, descending);
      });
    });
  }
})();
