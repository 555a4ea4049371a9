//! What README.md shows: its commands are run, its output is compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::ZEUGMA;
use crate::isolated::isolated;

#[test]
fn two_clusters_run_as_written() {
    let section = section("Two clusters of your own");
    let [_install, five, ask] = &section.blocks("sh")[..] else {
        panic!("other blocks than installing, five commands and asking");
    };
    assert_eq!(five.lines().count(), 5, "{five}");
    assert_eq!(ask.lines().count(), 1, "{ask}");
    let look = looks(&self::section("Look inside"));
    assert!(look.len() >= 8, "{look:?}");

    let folder = tempfile::tempdir().unwrap();
    // Not an orderly end: the gateways of `zeugma init` would drain for their whole delay first.
    let script = format!(
        r#"set -eu
trap 'kill -9 $(jobs -p); wait' EXIT
cd "$FOLDER"
{five}
{ask}
{look}
for try in $(seq 300); do
  grep -q '"http.status":200' east.log && exit 0
  sleep 0.1
done
echo "no request in the access log" >&2
exit 1
"#,
        look = look.join("\n")
    );
    let said = run(&script, folder.path());
    assert!(said.contains("Directory listing for /"), "{said}");

    let log = fs::read_to_string(folder.path().join("east.log")).unwrap();
    // The first ones may be refused: python takes its time to listen, and curl tries again.
    let line = log
        .lines()
        .find(|line| line.contains(r#""kind":"request""#) && line.contains(r#""http.status":200"#));
    let (real, shown) = (line.unwrap(), self::section("Look inside").block("json"));
    let keys = |line: &str| -> BTreeSet<String> {
        let line: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        line.into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(real), keys(&shown), "{real}");
}

#[test]
fn a_route_is_broken_and_mended_and_a_gateway_drained_as_written() {
    let clusters = section("Two clusters of your own").blocks("sh");
    let section = section("Break it, mend it, drain it");
    let commands = section.blocks("sh");
    let [spoil, findings, mend, load, status, drain] = &commands[..] else {
        panic!("other blocks than these six: {commands:?}");
    };
    let [found, moved] = &section.blocks("text")[..] else {
        panic!("other texts than findings and status");
    };
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        r#"set -eu
# What a job had started ends by itself, which only a namespace of its own can show.
trap 'kill -9 $(jobs -p); wait; while [ "${{ISOLATED-}}" ] && kill -0 -- -1 2>/dev/null; do :; done' EXIT
cd "$FOLDER"
# until WHAT COMMAND...: waits until it holds.
until_() {{
  what=$1; shift
  for try in $(seq 300); do "$@" >last.out 2>&1 && return; sleep 0.1; done
  echo "not within its time: $what" >&2; cat last.out lost.txt >&2; exit 1
}}
says() {{ text=$1; shift; "$@" | grep -qF "$text"; }}
{five}
{ask}
{spoil}
until_ "the finding" says 'did you mean' zeugma get findings --config east
echo "== findings"
{findings}
{ask}
{mend}
until_ "no finding" says none zeugma get findings --config east
zeugma explain ZG0102
{load}
until_ "the failover" says failover zeugma status --config east
echo "== status"
{status}
runs() {{ [[ $(jobs -r) == *"gateway --config west"* ]]; }}
until_ "west's gateway" runs
{drain}
gone() {{ ! runs; }}
until_ "the end of west's gateway" gone
since=$(wc -l < east.log)
answered() {{ [ "$(tail -n +"$since" east.log | grep -c '"dst.addr":"127.0.0.1:15080".*"http.status":200')" -ge 20 ]; }}
until_ "answers of east" answered
echo "== lost"
cat lost.txt
echo "== end"
"#,
        five = clusters[1],
        ask = clusters[2].replace("curl ", "curl -o /dev/null "),
    );
    let said = run(&script, folder.path());
    let part = |name: &str| {
        let (_, rest) = said.split_once(&format!("== {name}\n")).unwrap();
        rest.split("== ").next().unwrap().to_owned()
    };
    assert!(part("findings").contains(found), "{said}");
    let real: Vec<String> = part("status").lines().map(shape).collect();
    for line in moved.lines() {
        assert!(real.contains(&shape(line)), "{line}: {real:?}");
    }
    assert_eq!(part("lost"), "", "{said}");
}

#[test]
fn the_failover_document_means_what_it_says() {
    let section = section("Failover, in one document");
    let yaml = section.block("yaml");
    assert!(yaml.lines().count() <= 20, "{}", yaml.lines().count());
    let folder = tempfile::tempdir().unwrap();
    let zeugma = |arguments: &str| {
        let output = Command::new(ZEUGMA)
            .args(arguments.split(' '))
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        text_of(&output)
    };
    for command in self::section("Two clusters of your own").blocks("sh")[1].lines() {
        if let Some(arguments) = command.strip_prefix("zeugma init ") {
            zeugma(&format!("init {arguments}"));
        }
    }
    fs::write(folder.path().join("east/orders.yaml"), yaml).unwrap();
    let said = zeugma("config check --strict --config east");
    assert!(said.contains(&section.block("text")), "{said}");
}

/// Whether its claims hold is `tests/demo.rs`'s business; here it is what a reader will see.
#[test]
fn the_demo_tells_what_the_readme_shows() {
    let section = section("See it");
    let shown = &section.blocks("text")[0];
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("demo.sh");
    // Few requests, for there are other tests beside it; so some claims may not hold.
    fs::write(&script, "\"$ZEUGMA\" demo --rate 60 || [ $? = 1 ]\n").unwrap();
    let output = isolated(&script).env("ZEUGMA", ZEUGMA).output().unwrap();
    let said = text_of(&output);
    let (shown, summary) = shown.trim_end().rsplit_once('\n').unwrap();
    let mut real = said.lines().map(shape);
    for line in shown.lines().filter(|line| *line != "...") {
        let wanted = shape(line);
        assert!(
            real.any(|line| line == wanted),
            "not in the demo's output, or not in this order: {line}\n{said}"
        );
    }
    let (_, claims) = said.split_once("\nClaims\n").unwrap();
    let claims = claims.lines().take_while(|line| !line.is_empty()).count();
    assert_eq!(summary, format!("All {claims} claims held."));
}

#[test]
fn the_tests_it_shows_exist() {
    let section = section("See it");
    let shown = &section.blocks("text")[1];
    let names: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"))
        .collect();
    assert!(names.len() >= 3, "{shown}");
    let sources = sources(&root().join("tests"));
    for name in names {
        assert!(sources.contains(&format!("fn {name}()")), "no test {name}");
    }
}

#[test]
fn every_command_and_flag_it_names_is_in_the_help() {
    let mut all_help = String::new();
    assert!(commands(&readme()).len() >= 10);
    for file in documents() {
        let text = fs::read_to_string(file).unwrap();
        for command in commands(&text) {
            let words: Vec<&str> = command
                .split_whitespace()
                .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
                .take_while(|word| !word.starts_with('-'))
                .collect();
            let help = Command::new(ZEUGMA).args(&words).arg("--help").output();
            let help = help.unwrap();
            assert!(
                help.status.success(),
                "zeugma {command}: {}",
                text_of(&help)
            );
            let help = text_of(&help);
            for flag in command.split_whitespace().filter(|w| w.starts_with("--")) {
                assert!(help.contains(flag), "zeugma {command}: {help}");
            }
            all_help.push_str(&help);
        }
        all_help.push_str(&text_of(
            &Command::new(ZEUGMA)
                .args(["demo", "--help"])
                .output()
                .unwrap(),
        ));
        for flag in inline_code(&text).filter(|code| code.starts_with("--")) {
            let flag = flag.split(' ').next().unwrap();
            assert!(all_help.contains(flag), "{flag} is in no help");
        }
    }
}

#[test]
fn every_place_it_links_to_is_there() {
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        let folder = file.parent().unwrap();
        for link in text
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap())
        {
            if link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                file.clone()
            } else {
                folder.join(path)
            };
            assert!(target.exists(), "{} links to {link}", file.display());
            if !anchor.is_empty() {
                let headings = headings(&fs::read_to_string(target).unwrap());
                assert!(
                    headings.contains(anchor),
                    "{} links to {link}",
                    file.display()
                );
            }
        }
    }
}

/// What a script says that is run in `folder`, where `zeugma` is on the `PATH`.
fn run(script: &str, folder: &Path) -> String {
    let bin = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(ZEUGMA, bin.path().join("zeugma")).unwrap();
    let file = bin.path().join("readme.sh");
    fs::write(&file, script).unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = isolated(&file)
        .env("PATH", format!("{}:{path}", bin.path().display()))
        .env("FOLDER", folder)
        .output()
        .unwrap();
    let said = text_of(&output);
    assert!(output.status.success(), "{said}");
    said
}

/// What is written for users, but for the documents of those who change the code.
fn documents() -> Vec<PathBuf> {
    let named = ["README.md", "CHANGELOG.md", "examples/README.md"].map(|file| root().join(file));
    let of_examples = crate::folders()
        .into_iter()
        .map(|folder| folder.join("README.md"));
    named.into_iter().chain(of_examples).collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -".contains(*c));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect()
}

/// A line with what differs from run to run taken out: numbers, how a claim came out, and what was
/// found about it, which stands in brackets.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let line = line.split(" (").next().unwrap();
    for part in line.split_whitespace() {
        let digit = |c: char| c.is_ascii_digit();
        let is_name = part.split_once(digit).is_some_and(|(before, _)| {
            before.ends_with('-') || before.chars().any(char::is_alphabetic)
        });
        let part = if is_name {
            part.to_owned()
        } else {
            numbers_out(part)
        };
        // Durations change their unit.
        let part = match part.as_str() {
            "ms" | "ms," | "s" | "s," => "TIME",
            "BROKEN" => "held",
            other => other,
        };
        shape.push_str(part);
        shape.push(' ');
    }
    shape
}

fn numbers_out(part: &str) -> String {
    let mut out = String::new();
    let mut in_number = false;
    for c in part.chars() {
        let part_of_number = c.is_ascii_digit() || (in_number && c == '.');
        if part_of_number && !in_number {
            out.push('N');
        } else if !part_of_number {
            out.push(c);
        }
        in_number = part_of_number;
    }
    out
}

/// One `##` section of the README.
struct Section(String);

fn section(title: &str) -> Section {
    let readme = readme();
    let heading = format!("\n## {title}\n");
    let (_, rest) = readme
        .split_once(&heading)
        .unwrap_or_else(|| panic!("no section {title}"));
    Section(rest.split("\n## ").next().unwrap().to_owned())
}

impl Section {
    /// What its fenced blocks of that language hold, in order.
    fn blocks(&self, language: &str) -> Vec<String> {
        let fence = format!("```{language}\n");
        let blocks = self.0.split(&fence).skip(1);
        blocks
            .map(|block| block.split("```").next().unwrap().to_owned())
            .collect()
    }

    fn block(&self, language: &str) -> String {
        let mut blocks = self.blocks(language);
        assert_eq!(blocks.len(), 1, "{language}");
        blocks.remove(0)
    }
}

/// The `zeugma ...` commands of a text, without `zeugma`.
fn commands(text: &str) -> Vec<String> {
    let in_blocks = text.lines().filter_map(|line| line.strip_prefix("zeugma "));
    let inline = inline_code(text).filter_map(|code| code.strip_prefix("zeugma "));
    in_blocks.chain(inline).map(str::to_owned).collect()
}

fn inline_code(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|line| !line.starts_with("```"));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The commands in the table of what can be looked at, but for those with a place to fill in.
fn looks(section: &Section) -> Vec<String> {
    inline_code(&section.0)
        .filter_map(|code| match code.split_once(' ')? {
            ("curl", url) if url.starts_with("http://127.0.0.1:15") => {
                Some(format!("curl -fsS -o /dev/null {url}"))
            }
            ("zeugma", command) if command.ends_with("--config east") => Some(code.to_owned()),
            _ => None,
        })
        .collect()
}

fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            if path.is_dir() {
                sources(&path)
            } else {
                fs::read_to_string(&path).unwrap_or_default()
            }
        })
        .collect()
}

fn text_of(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
