"use strict";
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const column = heading.cellIndex;
    const table = heading.closest("table");
    const rising = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const rows = Array.from(table.tBodies[0].rows);
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
    };
    const order = (one, two) => {
      const [a, b] = [key(one), key(two)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const numbers = typeof a === "number" && typeof b === "number";
      const sign = numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return rising ? sign : -sign;
    };
    rows.sort(order);
    table.tBodies[0].append(...rows);
  });
}
