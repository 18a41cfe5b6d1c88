// Makes the columns of a table sortable: the heads in row `head` become buttons, a second click turns the order around.
function makeSortable(table, head) {
  const heads = [...table.rows[head].cells], body = table.tBodies[0];
  heads.forEach((cell, column) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: cell.textContent || "name" });
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") !== "descending", rows = [...table.rows].slice(head + 1);
      const value = (row) => row.cells[column]?.textContent.trim() ?? "";
      const compare = (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows.sort((a, b) => (down ? compare(b, a) : compare(a, b))));
    });
  });
}
