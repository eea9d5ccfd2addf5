// The page is complete without this: it adds sorting to the table and a button that copies the command.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (!body || body.rows.length < 2) continue;
  const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const initial = [...body.rows];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const first = header.dataset.better === "higher" ? "descending" : "ascending";
      const direction = header.getAttribute("aria-sort") !== first ? first : first === "ascending" ? "descending" : "ascending";
      const sign = direction === "ascending" ? 1 : -1;
      const compare = (rowA, rowB) => {
        if (column === 0) return sign * (initial.indexOf(rowA) - initial.indexOf(rowB));
        const [a, b] = [rowA.cells[column].dataset, rowB.cells[column].dataset];
        if (!a.value || !b.value) return (b.value ? 1 : 0) - (a.value ? 1 : 0);
        if (a.group !== b.group) return a.group < b.group ? -1 : 1;
        return sign * (Number(a.value) - Number(b.value));
      };
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", direction);
      body.append(...[...body.rows].sort(compare));
    });
  });
}
for (const box of document.querySelectorAll(".command")) {
  if (!navigator.clipboard) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(box.querySelector("code").textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  box.append(button);
}
