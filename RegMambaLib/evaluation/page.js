"use strict";
for (const viewer of document.querySelectorAll(".viewer")) {
  const opacity = viewer.querySelector(".opacity");
  const choices = viewer.querySelectorAll('input[name^="layer"]');
  const fade = () => viewer.style.setProperty("--opacity", opacity.value / 100);
  const choose = (choice) => {
    for (const picture of viewer.querySelectorAll(".over"))
      picture.classList.toggle("off", picture.dataset.layer !== choice.value);
    for (const legend of viewer.querySelectorAll(".legend"))
      legend.hidden = legend.dataset.layer !== choice.value;
    opacity.value = choice.dataset.opacity;
    fade();
  };
  for (const choice of choices) choice.addEventListener("change", () => choose(choice));
  opacity.addEventListener("input", fade);
  const checker = viewer.querySelector(".checker");
  checker.addEventListener("change", () => viewer.classList.toggle("checkered", checker.checked));
  for (const slider of viewer.querySelectorAll(".page")) {
    const panel = slider.closest("figure");
    const places = slider.dataset.places.split(" ");
    const turn = () => {
      panel.querySelector(".stack").style.setProperty("--slice", slider.value);
      panel.querySelector("output").textContent = places[slider.value] + " mm";
      slider.setAttribute("aria-valuetext", places[slider.value] + " mm");
    };
    slider.addEventListener("input", turn);
    turn();
  }
  // A reloaded page keeps its radio buttons.
  choose([...choices].find((choice) => choice.checked) || choices[0]);
  viewer.classList.toggle("checkered", checker.checked);
}
