// SPDX-License-Identifier: Apache-2.0 OR MIT
//! docs/first-manifest.md is followed to the letter: every file is written, every command typed,
//! and what the page shows is what is said.

use coffer::board::project_root;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Puts what a person types into a shell in a directory, and returns what is said.
fn shell(directory: &Path, command: &str) -> String {
    let tool = Path::new(env!("CARGO_BIN_EXE_coffer")).parent().unwrap();
    let path = format!("{}:{}", tool.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", &format!("{command} 2>&1")])
        .current_dir(directory)
        .env("PATH", path)
        .env("KERNEL", directory.join("vmlinuz"))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Returns whether a line is as the page shows it, where … stands for anything.
fn is_line(shown: &str, said: &str) -> bool {
    let Some((start, end)) = shown.split_once('…') else { return shown == said };
    let rest = said.strip_prefix(start);
    rest.is_some_and(|rest| match end.contains('…') {
        true => rest
            .match_indices(end.split('…').next().unwrap_or(""))
            .any(|(at, _)| is_line(end, &rest[at..])),
        false => rest.ends_with(end),
    })
}

/// Types the commands of one block, and compares.
fn type_in(directory: &Path, block: &str) {
    let mut lines = block.lines().peekable();
    while let Some(line) = lines.next() {
        let command = line.strip_prefix("$ ").unwrap();
        let mut shown = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
            shown.push(line.trim_end());
        }
        let said = shell(directory, command);
        let said: Vec<_> = said.trim_end().lines().map(str::trim_end).collect();
        let same = shown.len() == said.len()
            && shown.iter().zip(&said).all(|(shown, said)| is_line(shown, said));
        assert!(same, "$ {command}\n{}\n", said.join("\n"));
    }
}

#[test]
fn the_first_manifest_is_made_to_the_letter() {
    let bed = tempfile::tempdir().unwrap();
    fs::write(bed.path().join("vmlinuz"), crate::bed::image(4 << 20, 1)).unwrap();
    let page = fs::read_to_string(project_root().join("docs/first-manifest.md")).unwrap();
    let mut blocks = 0;
    let mut parts = page.split("\n```");
    let mut before = parts.next().unwrap();
    while let (Some(block), Some(behind)) = (parts.next(), parts.next()) {
        let (kind, body) = block.split_once('\n').unwrap();
        match kind {
            "console" => type_in(bed.path(), body),
            _ => {
                // The file's name stands in the line before.
                let line = before.trim_end().lines().last().unwrap();
                let name = line.strip_prefix('`').unwrap().strip_suffix("`:").unwrap();
                fs::write(bed.path().join(name), format!("{body}\n")).unwrap();
            }
        }
        before = behind;
        blocks += 1;
    }
    assert!(blocks > 5, "{blocks}");
}

/// Returns all files of the repository that could name a board.
fn files(folder: &Path, all: &mut Vec<std::path::PathBuf>) {
    const TEXT: [&str; 7] = ["rs", "md", "toml", "dts", "json", "sh", ""];
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if entry.is_dir() && !name.starts_with('.') && name != "target" {
            files(&entry, all);
        } else if entry.is_file() {
            let extension = entry.extension().unwrap_or_default().to_string_lossy().into_owned();
            if TEXT.contains(&&*extension) {
                all.push(entry);
            }
        }
    }
}

#[test]
fn its_board_is_mentioned_nowhere_else() {
    // In two pieces, so that this file does not mention it.
    let board = ["light", "house-2"].concat();
    let mut all = Vec::new();
    files(&project_root(), &mut all);
    let names = |path: &Path| {
        fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&board))
    };
    let naming: Vec<_> = all.iter().filter(|path| names(path)).collect();
    assert_eq!(naming, [&project_root().join("docs/first-manifest.md")]);
}

#[test]
fn dots_stand_for_anything() {
    assert!(is_line("a … c", "a b c") && is_line("a …", "a b") && is_line("…a…b", "xayb"));
    assert!(!is_line("a … d", "a b c") && !is_line("a", "b") && !is_line("…a…b", "xby"));
}
