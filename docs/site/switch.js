// The switch of languages keeps the place on the page: headings have the same anchors in both.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.switch");
  if (link) link.hash = location.hash;
});
