// ----- errors

function showErrors() {
  $("quiet").hidden = errors.length > 0;
  const items = errors.map((error) => {
    const item = make("li"), top = make("div", "top");
    top.append(make("strong", "", WORDS["e_" + error.code] ? t("e_" + error.code) : error.code));
    top.append(make("span", "dim", new Date(error.at).toLocaleString(language)));
    if (error.times > 1) top.append(make("span", "warn", t("times", { n: number(error.times) })));
    item.append(top);
    if (error.device) item.append(deviceLink(error.device));
    item.append(make("p", "", error.sentence), make("p", "dim", WORDS["a_" + error.code] ? t("a_" + error.code) : error.advice));
    return item;
  });
  $("errors").replaceChildren(...items);
}
