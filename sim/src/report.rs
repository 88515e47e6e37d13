//! One page that shows a run or a frontier to people: self-contained, in Chinese and English, for a phone or a desk. It carries
//! the data that `--json` gives, draws them when it is opened, and asks no network for anything.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::frontier::cell::Frontier;
use crate::outcome::Outcome;

const HEAD: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/style.css");
const WORDS: &str = include_str!("report/words.json");
const COMMON: &str = include_str!("report/common.js");
const RUN: &str = include_str!("report/run.js");
const FRONTIER: &str = include_str!("report/frontier.js");

#[derive(Serialize)]
struct RunData<'a> {
    title: &'a str,
    title_zh: &'a str,
    replay: String,
    outcome: &'a Outcome,
}

/// The page of a run, with what its scenario is called in English and in Chinese.
///
/// # Errors
/// Where the data cannot be written down.
pub fn of_run(outcome: &Outcome, title: &str, title_zh: &str) -> Result<String> {
    page(&RunData { title, title_zh, replay: outcome.replay(), outcome }, RUN)
}

#[derive(Serialize)]
struct FrontierData<'a> {
    command: &'a str,
    #[serde(flatten)]
    frontier: &'a Frontier,
}

/// The page of a frontier that this command draws.
///
/// # Errors
/// Where the data cannot be written down.
pub fn of_frontier(frontier: &Frontier, command: &str) -> Result<String> {
    page(&FrontierData { command, frontier }, FRONTIER)
}

fn page(data: &impl Serialize, script: &str) -> Result<String> {
    let data = serde_json::to_string(data).context("the data of a report")?;
    // In JSON it stands only in strings, and there it may be written like this; so no text can end the element.
    let data = data.replace('<', "\\u003c");
    Ok([
        HEAD,
        "<style>\n",
        STYLE,
        "</style>\n</head>\n<body>\n<main id=\"page\"><noscript>This page draws its data by JavaScript. ",
        "本页面需要 JavaScript 绘图。</noscript></main>\n<div id=\"tip\" role=\"status\"></div>\n",
        "<script type=\"application/json\" id=\"words\">\n",
        WORDS,
        "</script>\n<script type=\"application/json\" id=\"data\">\n",
        &data,
        "\n</script>\n<script>\n",
        COMMON,
        "</script>\n<script>\n",
        script,
        "</script>\n</body>\n</html>\n",
    ]
    .concat())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::frontier::cell::{Found, Kind};
    use crate::frontier::mode::Contender;
    use crate::outcome::{FaultMark, NodeTimeline, SimMode, Timeline, Violation};
    use crate::plan::FaultKind;
    use crate::promises::{Coverage, Promise};

    fn outcome() -> Outcome {
        let node = NodeTimeline {
            node: "canteen-1".to_owned(),
            link: vec![(1_200, true), (40_000, false), (90_000, true)],
            process: vec![(0, true)],
            backlog: vec![0, 7, 3, 0],
            behind: vec![4, 2, 1, 0],
            view_age_ms: vec![0, 30_000, 0, 0],
            exposed_fen: vec![0, 1_250, 99, 0],
        };
        Outcome {
            scenario: "lunch".to_owned(),
            seed: 3,
            mode: "message".to_owned(),
            violations: vec![Violation {
                promise: Promise::Survives,
                text: "</script><script>alert(1)</script>".to_owned(),
                at_ms: 5,
                last_events: vec!["a < b".to_owned()],
            }],
            sim_ms: 120_000,
            timeline: Timeline {
                every_ms: 30_000,
                nodes: vec![node],
                stand_in_out_fen: vec![1, 2, 3, 4],
                open_cases_fen: vec![0, 0, 50, 0],
                faults: vec![FaultMark {
                    from_ms: 40_000,
                    to_ms: 90_000,
                    kind: "partition".to_owned(),
                    place: "canteen-1".to_owned(),
                }],
                latency_us: vec![0, 1, 5],
            },
            ..Outcome::default()
        }
    }

    fn frontier() -> Frontier {
        let found = |contender| Found {
            half_hours: 48,
            taps: 100,
            false_declines: 3,
            unreachable: 1,
            approved_fen: 10_000,
            stand_in_fen: 300,
            overspend_fen: 20,
            bound_fen: 500,
            cut_taps: 100,
            cut_false_declines: 4,
            ..Found::none(1, contender, Kind::Isolation)
        };
        Frontier::new(&(0..Contender::ALL.len()).map(found).collect::<Vec<_>>())
    }

    /// What stands between the element's start and its end, as a browser finds it.
    fn element(page: &str, id: &str) -> serde_json::Value {
        let start = format!("id=\"{id}\">");
        let (_, rest) = page.split_once(&start).unwrap();
        let (text, _) = rest.split_once("</script").unwrap();
        serde_json::from_str(text).unwrap()
    }

    fn pages() -> [String; 2] {
        [
            of_run(&outcome(), "Lunch", "午餐").unwrap(),
            of_frontier(&frontier(), "feiqian-sim frontier").unwrap(),
        ]
    }

    #[test]
    fn a_page_carries_the_whole_outcome_and_nothing_of_it_becomes_markup() {
        let page = of_run(&outcome(), "Lunch <i>", "午餐").unwrap();
        let data = element(&page, "data");
        assert_eq!(serde_json::from_value::<Outcome>(data["outcome"].clone()).unwrap(), outcome());
        assert_eq!((&data["title"], &data["title_zh"]), (&"Lunch <i>".into(), &"午餐".into()));
        assert_eq!(data["replay"], "feiqian-sim run lunch --seed 3");
        let scripts = page.matches("<script").count();
        assert_eq!((scripts, page.matches("</script").count()), (4, 4));
    }

    #[test]
    fn a_page_carries_every_cell_of_a_frontier() {
        let page = of_frontier(&frontier(), "feiqian-sim frontier --seeds 0..1").unwrap();
        let data = element(&page, "data");
        assert_eq!(data["cells"], serde_json::to_value(frontier()).unwrap()["cells"]);
        assert_eq!(data["cells"].as_array().unwrap().len(), Contender::ALL.len());
    }

    #[test]
    fn a_page_refers_to_nothing_outside_itself() {
        for page in pages() {
            let outside =
                ["http:", "https:", "//cdn", "src=", "href=", "url(", "@import", "import(", "fetch("];
            let found: Vec<_> = outside.iter().filter(|text| page.contains(**text)).collect();
            assert!(found.is_empty(), "{found:?}");
            assert!(page.contains("default-src 'none'"));
        }
    }

    /// Keys that a script asks for by name.
    fn asked(script: &str) -> BTreeSet<String> {
        let after = |call: &str| {
            let keys = script.split(call).skip(1).filter_map(|rest| rest.split('"').next());
            keys.map(str::to_owned).collect::<Vec<_>>()
        };
        after("word(\"").into_iter().chain(after("section(\"")).collect()
    }

    #[test]
    fn both_languages_have_every_word() {
        let words: BTreeMap<String, [String; 2]> = serde_json::from_str(WORDS).unwrap();
        let is_chinese = |text: &str| text.chars().any(|one| ('\u{4e00}'..='\u{9fff}').contains(&one));
        for (key, [english, chinese]) in &words {
            assert!(!english.is_empty() && !is_chinese(english), "{key}: {english}");
            assert!(is_chinese(chinese), "{key}: {chinese}");
            for place in ["{0}", "{1}"] {
                assert_eq!(english.contains(place), chinese.contains(place), "{key}");
            }
        }
        let mut wanted = BTreeSet::new();
        [COMMON, RUN, FRONTIER].iter().for_each(|script| wanted.extend(asked(script)));
        let mut group = |group: &str, names: &mut dyn Iterator<Item = &str>| {
            wanted.extend(names.map(|name| format!("{group}.{name}")));
        };
        group("promise", &mut Promise::ALL.iter().map(|promise| promise.name()));
        group("path", &mut Coverage::ALL.iter().map(|path| path.name()));
        group("fault", &mut FaultKind::NAMES.into_iter());
        group("mode", &mut [SimMode::Message, SimMode::FullStack].iter().map(|mode| mode.name()));
        group("kind", &mut Kind::ALL.iter().map(|kind| kind.name()));
        group("policy", &mut Contender::ALL.iter().map(|contender| contender.mode()));
        let settings = Contender::ALL.map(Contender::setting);
        group("setting", &mut settings.iter().filter_map(|text| text.split_whitespace().next()));
        group("state", &mut ["connected", "cut", "stopped"].into_iter());
        let have: BTreeSet<String> = words.into_keys().collect();
        let missing: Vec<_> = wanted.difference(&have).collect();
        assert!(missing.is_empty(), "no words for {missing:?}");
        let unused: Vec<_> = have.difference(&wanted).collect();
        assert!(unused.is_empty(), "words that nobody uses: {unused:?}");
    }
}
