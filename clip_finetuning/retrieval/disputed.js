// Writes the table of the page anew, with the verdicts that were ticked in its first column.
const table = JSON.parse(document.getElementById("table").textContent);
const cards = [...document.querySelectorAll("fieldset")];
const verdicts = () => cards.map((card) => card.querySelector("input:checked").value);
const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

function csv() {
  const given = verdicts();
  const rows = table.rows.map((row, number) => [given[number], ...row.slice(1)]);
  return "\ufeff" + [table.header, ...rows].map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

document.addEventListener("change", () => {
  document.getElementById("judged").textContent = verdicts().filter(Boolean).length;
});
document.getElementById("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = table.name;
  link.click();
});
