(function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)"), printing = false, PAPER = 660;
  function look() {
    var ink = dark.matches && !printing ? "#e6e9ec" : "#1c2126", none = "rgba(0,0,0,0)";
    return { paper_bgcolor: none, plot_bgcolor: none, font: { color: ink, family: "system-ui, sans-serif", size: 12 } };
  }
  function draw(place) {
    if (place.dataset.drawn || !place.offsetParent) { return; }
    place.dataset.drawn = "1";
    var figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    var layout = Object.assign({}, figure.layout, look());
    if (printing) { layout.width = PAPER; }
    else if (place.clientWidth < 560) {  // beside the chart its legend would leave it no room
      layout.legend = Object.assign({}, layout.legend, { orientation: "h", x: 0, xanchor: "left", y: -0.22,
        yanchor: "top" });
      layout.height = (layout.height || 420) + 220;
    }
    Plotly.newPlot(place, figure.data, layout, { responsive: true, displaylogo: false });
  }
  function each(todo) { Array.prototype.forEach.call(document.querySelectorAll(".drawing"), todo); }
  function again() {
    each(function (place) {
      if (place.dataset.drawn) {
        var change = look();
        change.width = printing ? PAPER : null;
        change.autosize = !printing;
        Plotly.relayout(place, change);
      }
    });
  }
  each(draw);
  document.addEventListener("toggle", function (event) {
    if (event.target.open) { Array.prototype.forEach.call(event.target.querySelectorAll(".drawing"), draw); }
  }, true);
  dark.addEventListener("change", again);
  window.addEventListener("beforeprint", function () {
    printing = true;
    Array.prototype.forEach.call(document.querySelectorAll("details"), function (each) { each.open = true; });
    again();
    each(draw);
  });
  window.addEventListener("afterprint", function () { printing = false; again(); });
}());
