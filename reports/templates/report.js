// Sorts a table of cells by the column that is clicked, and hides the rows that lack a typed word.
for (const table of document.querySelectorAll("table.cells")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const text = (row, i) => row.cells[i].textContent.trim();
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (a, b) => {
        const [x, y] = [text(a, i), text(b, i)];
        if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1); // empty last, either way
        return (down ? -1 : 1) * x.localeCompare(y, "en", { numeric: true });
      };
      body.append(...rows.sort(compare));
    });
  });
  const details = table.closest("details");
  const input = details.querySelector("input");
  const output = details.querySelector("output");
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
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
