// Sorts a table of cells by the column that is clicked, and hides the rows that lack a typed word.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const text = (row, i) => row.cells[i].textContent.trim().replace("−", "-");
  // "< 0.001" is just below .001, "±0.0" is 0, and "failed" is no number.
  const number = (shown) => (shown[0] === "<" ? parseFloat(shown.slice(1)) * 0.999 : parseFloat(shown.replace("±", "")));
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numbers = head.classList.contains("n");
      const compare = (a, b) => {
        const [x, y] = [text(a, i), text(b, i)].map((each) => (numbers ? number(each) : each));
        const lacks = (each) => (numbers ? Number.isNaN(each) : !each);
        if (lacks(x) || lacks(y)) return (lacks(x) ? 1 : 0) - (lacks(y) ? 1 : 0); // last, either way
        const order = numbers ? x - y : x.localeCompare(y, "en", { numeric: true });
        return down ? -order : order;
      };
      body.append(...rows.sort(compare));
    });
  });
  const filter = table.closest(".scroll").previousElementSibling;
  const input = filter.querySelector("input");
  const output = filter.querySelector("output");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const line = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => line.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    output.textContent = words.length ? `${shown} of ${rows.length}` : "";
  });
}

// The contents: folded where they would push the numbers off the screen, open beside them; and where the reader is.
const contents = document.querySelector(".contents details");
if (contents) {
  const wide = matchMedia("(min-width: 84rem)");
  const fold = () => { contents.open = wide.matches; };
  wide.addEventListener("change", fold);
  fold();
  const links = new Map([...contents.querySelectorAll("a")].map((a) => [document.getElementById(a.hash.slice(1)), a]));
  const watch = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "0px 0px -75% 0px" });
  for (const target of links.keys()) if (target.matches("h2, h3")) watch.observe(target);
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("main details")) details.open = true;
});
