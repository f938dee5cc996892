// Ranks search results: a page named as the query comes before pages whose titles only contain it.
const asked = (new URLSearchParams(window.location.search).get("q") || "").trim().toLowerCase();

var Scorer = {
  score: ([page, title, anchor, description, score]) => {
    const name = title.toLowerCase().replace(/<[^>]*>/g, "");
    if (!asked) return score;
    if (name === asked || page.split("/").pop() === asked) return score + 100;
    return name.startsWith(asked) ? score + 50 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
