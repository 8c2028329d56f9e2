//! Which command to run: the one that was typed, a file's, a language's, or a hello world.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use pinfold_types::spec::Language;

use crate::arguments::{PlaceOptions, ProgramOptions};
use crate::error::CliError;

/// Directory inside that files are copied to and programs start in.
pub(crate) const WORKSPACE: &str = "/workspace";

/// Most bytes of an `--env-file`: the environment itself may hold no more.
const ENV_FILE_BYTES_MAX: u64 = pinfold_types::spec::ENVIRONMENT_BYTES_MAX as u64;

/// A file to copy in before the program starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upload {
    /// Where it is on the host.
    pub(crate) source: PathBuf,
    /// Where it goes.
    pub(crate) target: String,
    /// Its permission bits.
    pub(crate) mode: u32,
}

/// Checks `--file` and tells where each goes.
///
/// # Errors
///
/// Names the file that is not there or is no file.
pub(crate) fn uploads(files: &[PathBuf], directory: &str) -> Result<Vec<Upload>, CliError> {
    files
        .iter()
        .map(|source| {
            let failed = || CliError::new(format!("failed to read the file {}", source.display()));
            let metadata = std::fs::metadata(source).map_err(|error| failed().caused_by(&error))?;
            if !metadata.is_file() {
                return Err(failed()
                    .caused_by(&CliError::new("it is not a regular file"))
                    .hint("show a directory inside with --in DIR, or copy it with `pinfold cp`"));
            }
            let name = source
                .file_name()
                .and_then(|name| name.to_str())
                .ok_or_else(|| failed().caused_by(&CliError::new("its name is not UTF-8")))?;
            let executable =
                std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111;
            Ok(Upload {
                source: source.clone(),
                target: format!("{}/{name}", directory.trim_end_matches('/')),
                mode: if executable == 0 { 0o644 } else { 0o755 },
            })
        })
        .collect()
}

/// Chooses the command.
///
/// # Errors
///
/// Says what to add when nothing says what to run.
pub(crate) fn command(
    typed: &[String],
    options: &ProgramOptions,
    uploads: &[Upload],
    language: Option<Language>,
) -> Result<Vec<String>, CliError> {
    if !typed.is_empty() {
        return Ok(typed.to_vec());
    }
    let language = options.language.or(language);
    if options.hello {
        return Ok(language.map_or_else(
            || vec!["echo".to_owned(), "hello world".to_owned()],
            Language::hello,
        ));
    }
    if let Some(file) = uploads.first() {
        return file_command(file, options.language, language);
    }
    if let Some(language) = language {
        let program = interpreter(language)?;
        if options.interactive || options.tty {
            return Ok(program);
        }
        let name = program.join(" ");
        return Err(
            CliError::new(format!("nothing says what `{name}` is to run"))
                .hint(
                    "name a file with --file, pass a program in with -i, or add -it to talk to it; \
                 --hello runs an example",
                )
                .exit(2),
        );
    }
    if options.tty {
        return Ok(vec!["/bin/sh".to_owned()]);
    }
    Err(CliError::new("nothing says what to run")
        .hint("add a command after `--`, as in `-- python3 -c 'print(6*7)'`, or --file or --hello")
        .exit(2))
}

/// A named language wins, then the file's extension, then the sandbox's language.
fn file_command(
    file: &Upload,
    named: Option<Language>,
    fallback: Option<Language>,
) -> Result<Vec<String>, CliError> {
    let of_extension = Language::of_file(&file.target);
    if let Some(language) = named.or(of_extension) {
        return Ok(language.run_file(&file.target));
    }
    let is_script = Path::new(&file.target)
        .extension()
        .is_some_and(|extension| extension == "sh");
    if is_script {
        return Ok(vec!["sh".to_owned(), file.target.clone()]);
    }
    if file.mode & 0o111 != 0 {
        return Ok(vec![file.target.clone()]);
    }
    if let Some(language) = fallback {
        return Ok(language.run_file(&file.target));
    }
    Err(
        CliError::new(format!("cannot tell how to run {}", file.source.display()))
            .hint("name its language with --language, make it executable, or add a command")
            .exit(2),
    )
}

fn interpreter(language: Language) -> Result<Vec<String>, CliError> {
    let program = match language {
        Language::Python => "python3",
        Language::Javascript => "node",
        Language::Ruby => "ruby",
        Language::Golang => {
            return Err(CliError::new("go cannot run a program from standard input")
                .hint("name a file with --file main.go, or run --hello")
                .exit(2));
        }
    };
    Ok(vec![program.to_owned()])
}

/// Puts together the variables of `--env-file` and `--env`; the latter win.
///
/// # Errors
///
/// Names the file and line, or the variable, that is wrong.
pub(crate) fn environment(options: &PlaceOptions) -> Result<BTreeMap<String, String>, CliError> {
    let mut variables = BTreeMap::new();
    for path in &options.env_file {
        read_env_file(path, &mut variables)?;
    }
    for text in &options.env {
        add_variable(text, &mut variables).map_err(|error| error.within("--env"))?;
    }
    pinfold_types::spec::check_environment(&variables).map_err(|error| {
        CliError::new(error.to_string()).hint("pass large data as a file, with --file or --in")
    })?;
    Ok(variables)
}

fn read_env_file(path: &Path, variables: &mut BTreeMap<String, String>) -> Result<(), CliError> {
    let failed = || {
        CliError::new(format!(
            "failed to read the variables of {}",
            path.display()
        ))
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(ENV_FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| failed().caused_by(&error))?;
    if text.len() as u64 > ENV_FILE_BYTES_MAX {
        return Err(failed()
            .caused_by(&CliError::new(
                "an environment is larger than the limit of 1 MiB",
            ))
            .hint("pass large data as a file, with --file or --in"));
    }
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{}:{}", path.display(), index + 1);
        let name = line.split('=').next().unwrap_or_default();
        if name.contains(char::is_whitespace) {
            return Err(
                CliError::new(format!("`{name}` is not the name of a variable"))
                    .hint("write NAME=VALUE, without `export`; quotes become part of the value")
                    .within(&place),
            );
        }
        add_variable(line, variables).map_err(|error| error.within(&place))?;
    }
    Ok(())
}

fn add_variable(text: &str, variables: &mut BTreeMap<String, String>) -> Result<(), CliError> {
    let (name, value) = if let Some((name, value)) = text.split_once('=') {
        (name, value.to_owned())
    } else {
        let value = std::env::var(text).map_err(|error| {
            CliError::new(format!("the variable {text} cannot be passed on"))
                .caused_by(&error)
                .hint("write NAME=VALUE, or set the variable first")
        })?;
        (text, value)
    };
    if name.is_empty() {
        return Err(CliError::new("a variable has no name").hint("write NAME=VALUE"));
    }
    variables.insert(name.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(language: Option<Language>, hello: bool, tty: bool) -> ProgramOptions {
        ProgramOptions {
            file: Vec::new(),
            language,
            hello,
            timeout: None,
            interactive: false,
            tty,
        }
    }

    fn upload(name: &str, mode: u32) -> Upload {
        Upload {
            source: PathBuf::from(name),
            target: format!("/workspace/{name}"),
            mode,
        }
    }

    #[test]
    fn the_command_is_the_most_explicit_one() {
        let check = |options: &ProgramOptions, file: Option<Upload>, of_sandbox, expected: &str| {
            let uploads: Vec<Upload> = file.into_iter().collect();
            let chosen = command(&[], options, &uploads, of_sandbox).map(|words| words.join(" "));
            assert_eq!(chosen.as_deref().unwrap_or("error"), expected);
        };
        let none = options(None, false, false);
        check(
            &none,
            Some(upload("a.py", 0o644)),
            None,
            "python3 /workspace/a.py",
        );
        check(
            &none,
            Some(upload("a.js", 0o644)),
            Some(Language::Python),
            "node /workspace/a.js",
        );
        check(
            &none,
            Some(upload("a", 0o644)),
            Some(Language::Ruby),
            "ruby /workspace/a",
        );
        check(&none, Some(upload("a", 0o755)), None, "/workspace/a");
        check(
            &none,
            Some(upload("a.sh", 0o644)),
            None,
            "sh /workspace/a.sh",
        );
        check(&none, Some(upload("a", 0o644)), None, "error");
        check(&none, None, None, "error");
        // An interpreter with nothing to read would end at once and say nothing.
        check(&none, None, Some(Language::Python), "error");
        let talking = options(None, false, true);
        check(&talking, None, Some(Language::Python), "python3");
        check(
            &options(Some(Language::Golang), false, false),
            None,
            None,
            "error",
        );
        check(&options(None, false, true), None, None, "/bin/sh");
        check(&options(None, true, false), None, None, "echo hello world");
        let go = options(Some(Language::Golang), false, false);
        check(
            &go,
            Some(upload("a.py", 0o644)),
            None,
            "go run /workspace/a.py",
        );
        let typed = command(&["x".to_owned()], &none, &[upload("a.py", 0)], None).unwrap();
        assert_eq!(typed, ["x"]);
    }

    #[test]
    fn variables_come_from_files_and_flags() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        std::fs::write(&file, "# note\nA=1\n\nB=x=y\n").unwrap();
        let options = |env: &[&str]| PlaceOptions {
            env: env.iter().map(|text| (*text).to_owned()).collect(),
            env_file: vec![file.clone()],
            workdir: None,
            user: None,
        };
        let variables = environment(&options(&["A=2", "PATH"])).unwrap();
        assert_eq!(variables.get("A").map(String::as_str), Some("2"));
        assert_eq!(variables.get("B").map(String::as_str), Some("x=y"));
        assert!(variables.contains_key("PATH"));
        for bad in ["=x", "PINFOLD_SURELY_NOT_SET"] {
            assert!(environment(&options(&[bad])).is_err(), "{bad}");
        }
        let huge = format!("A={}", "x".repeat(10 << 20));
        let error = environment(&options(&[&huge])).unwrap_err();
        assert!(error.hint_text().is_some());
        std::fs::write(&file, "A=1\nexport C=3\n").unwrap();
        let error = environment(&options(&[])).unwrap_err();
        assert!(error.message().contains("env:2"), "{}", error.message());
    }
}
