// Makes the columns of a table sortable: the heads in row `head` become buttons, a second click turns the order around.
// Rows of the class "detail" belong to the row above them and move with it.
function makeSortable(table, head) {
  const heads = [...table.rows[head].cells], body = table.tBodies[0];
  heads.forEach((cell, column) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: cell.textContent });
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") !== "descending", groups = [];
      for (const row of [...table.rows].slice(head + 1)) {
        if (row.classList.contains("detail")) groups.at(-1).push(row);
        else groups.push([row]);
      }
      const value = ([row]) => row.cells[column]?.textContent.trim() ?? "";
      const compare = (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...groups.sort((a, b) => (down ? compare(b, a) : compare(a, b))).flat());
    });
  });
}

// Orders the blocks of a container by what a select says: the name of one of their data attributes, "-" before it for falling.
function sortBlocks(container, select) {
  select.addEventListener("change", () => {
    const down = select.value.startsWith("-"), name = select.value.replace("-", "");
    const compare = (a, b) => a.dataset[name].localeCompare(b.dataset[name], undefined, { numeric: true });
    container.append(...[...container.children].sort((a, b) => (down ? compare(b, a) : compare(a, b))));
  });
}
