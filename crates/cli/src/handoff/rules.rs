//! The files that programs of a host act on by themselves, as data.
//!
//! Names are written as they are compared: folded to lower case.

use super::content;

/// Which paths a rule is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pattern {
    /// A file of this name, anywhere.
    Name(&'static str),
    /// A file whose name ends so.
    Ending(&'static str),
    /// A path that ends with these names.
    End(&'static [&'static str]),
    /// Everything beneath these names.
    Under(&'static [&'static str]),
    /// Files of these names right in a directory of that name.
    In(&'static str, &'static [&'static str]),
}

/// One kind of file that is acted on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) kind: &'static str,
    pub(super) pattern: Pattern,
    /// Says whether what is in the file makes it one; without it, its name is enough.
    pub(super) content: Option<fn(&[u8]) -> bool>,
    pub(super) why: &'static str,
}

const fn rule(kind: &'static str, pattern: Pattern, why: &'static str) -> Rule {
    Rule {
        kind,
        pattern,
        content: None,
        why,
    }
}

const fn holding(
    kind: &'static str,
    pattern: Pattern,
    content: fn(&[u8]) -> bool,
    why: &'static str,
) -> Rule {
    Rule {
        kind,
        pattern,
        content: Some(content),
        why,
    }
}

use Pattern::{End, Ending, In, Name, Under};

/// Hooks that git runs, wherever a repository, also a bare one, is.
const HOOKS: &[&str] = &[
    "applypatch-msg",
    "commit-msg",
    "fsmonitor-watchman",
    "p4-changelist",
    "p4-post-changelist",
    "p4-pre-submit",
    "p4-prepare-changelist",
    "post-applypatch",
    "post-checkout",
    "post-commit",
    "post-index-change",
    "post-merge",
    "post-receive",
    "post-rewrite",
    "post-update",
    "pre-applypatch",
    "pre-auto-gc",
    "pre-commit",
    "pre-merge-commit",
    "pre-push",
    "pre-rebase",
    "pre-receive",
    "prepare-commit-msg",
    "proc-receive",
    "push-to-checkout",
    "reference-transaction",
    "sendemail-validate",
    "update",
];

const GIT_HOOK: &str = "git runs it at commits, checkouts, merges and pushes";
const GIT_CONFIG: &str = "git runs a program that it names, or reads another file that does";
const EDITOR: &str = "an editor reads it when the directory is opened, and may run what it names";
const SHELL: &str = "a shell runs it when it starts";
const TOOL: &str = "a tool reads it when it starts in that directory, and may run what it names";
const ENTERED: &str = "a shell's helper runs it when the directory is entered";
const CI: &str = "a build service runs it when it is pushed";
const PACKAGES: &str = "a package manager obeys it at the next install";
const PYTHON: &str = "python runs it when it starts, or when tests are looked for";
const HOOKS_TOOL: &str = "it names what runs at commits once its tool is set up";
const LOGIN: &str = "it runs at a login, or lets somebody log in";

/// Every rule. The first that matches is told.
pub(super) const RULES: &[Rule] = &[
    rule("git hook", In("hooks", HOOKS), GIT_HOOK),
    rule("git hook", Under(&[".husky"]), GIT_HOOK),
    rule("git hook", Under(&[".githooks"]), GIT_HOOK),
    holding(
        "git config",
        Name("config"),
        content::git_config,
        GIT_CONFIG,
    ),
    holding(
        "git config",
        Name("config.worktree"),
        content::git_config,
        GIT_CONFIG,
    ),
    holding(
        "git config",
        Name(".gitconfig"),
        content::git_config,
        GIT_CONFIG,
    ),
    holding(
        "git filter",
        Name(".gitattributes"),
        content::git_attributes,
        "git runs the filter, diff or merge program of that name",
    ),
    holding(
        "git filter",
        End(&["info", "attributes"]),
        content::git_attributes,
        "git runs the filter, diff or merge program of that name",
    ),
    rule(
        "git submodule",
        Name(".gitmodules"),
        "git fetches and checks out what it names",
    ),
    rule(
        "git directory",
        Name(".git"),
        "git takes its hooks and its configuration from where it leads",
    ),
    rule(
        "git directory",
        End(&[".git", "commondir"]),
        "git takes its hooks and its configuration from where it leads",
    ),
    rule(
        "git directory",
        End(&["info", "alternates"]),
        "git takes objects from where it leads",
    ),
    rule("editor task", End(&[".vscode", "tasks.json"]), EDITOR),
    rule("editor setting", Under(&[".vscode"]), EDITOR),
    rule("editor setting", Ending(".code-workspace"), EDITOR),
    rule("editor setting", Under(&[".idea"]), EDITOR),
    rule("editor setting", Under(&[".vim"]), EDITOR),
    rule("editor setting", Under(&[".nvim"]), EDITOR),
    rule("editor setting", Under(&[".config", "nvim"]), EDITOR),
    rule("editor setting", Under(&[".zed"]), EDITOR),
    rule("editor setting", Under(&[".fleet"]), EDITOR),
    rule("editor setting", Under(&[".cursor"]), EDITOR),
    rule("editor setting", Under(&[".devcontainer"]), EDITOR),
    rule("editor setting", Name(".devcontainer.json"), EDITOR),
    rule("editor setting", Name(".exrc"), EDITOR),
    rule("editor setting", Name(".nvimrc"), EDITOR),
    rule("editor setting", Name(".nvim.lua"), EDITOR),
    rule("editor setting", Name(".vimrc"), EDITOR),
    rule("editor setting", Name("_vimrc"), EDITOR),
    rule("editor setting", Name(".gvimrc"), EDITOR),
    rule("editor setting", Name(".lvimrc"), EDITOR),
    rule("editor setting", Name(".emacs"), EDITOR),
    rule("editor setting", Under(&[".emacs.d"]), EDITOR),
    rule("editor setting", Name(".dir-locals.el"), EDITOR),
    rule("editor setting", Ending(".sublime-project"), EDITOR),
    rule(
        "agent setting",
        Name(".mcp.json"),
        "an agent starts the servers that it names",
    ),
    rule(
        "agent setting",
        Under(&[".claude"]),
        "an agent obeys it, and runs the hooks that it names",
    ),
    rule("environment", Name(".envrc"), ENTERED),
    rule("environment", Name(".autoenv"), ENTERED),
    rule("environment", Name(".autoenv.zsh"), ENTERED),
    rule("environment", Name(".mise.toml"), ENTERED),
    rule("environment", Name("mise.toml"), ENTERED),
    rule("environment", Name(".mise.local.toml"), ENTERED),
    rule("environment", Name("mise.local.toml"), ENTERED),
    rule("environment", Under(&[".mise"]), ENTERED),
    rule("environment", Name(".rtx.toml"), ENTERED),
    rule("environment", Name(".tool-versions"), ENTERED),
    rule("CI", Under(&[".github", "workflows"]), CI),
    rule("CI", Under(&[".github", "actions"]), CI),
    rule("CI", Under(&[".gitea", "workflows"]), CI),
    rule("CI", Under(&[".forgejo", "workflows"]), CI),
    rule("CI", Name(".gitlab-ci.yml"), CI),
    rule("CI", Under(&[".gitlab"]), CI),
    rule("CI", Under(&[".circleci"]), CI),
    rule("CI", Under(&[".buildkite"]), CI),
    rule("CI", Under(&[".woodpecker"]), CI),
    rule("CI", Name(".woodpecker.yml"), CI),
    rule("CI", Name(".travis.yml"), CI),
    rule("CI", Name(".drone.yml"), CI),
    rule("CI", Name(".cirrus.yml"), CI),
    rule("CI", Name("azure-pipelines.yml"), CI),
    rule("CI", Name("bitbucket-pipelines.yml"), CI),
    rule("CI", Name("appveyor.yml"), CI),
    rule("CI", Name("jenkinsfile"), CI),
    holding(
        "install script",
        Name("package.json"),
        content::package_scripts,
        PACKAGES,
    ),
    holding(
        "install script",
        Name("composer.json"),
        content::composer_scripts,
        PACKAGES,
    ),
    rule("package setting", Name(".npmrc"), PACKAGES),
    rule("package setting", Name(".yarnrc"), PACKAGES),
    rule("package setting", Name(".yarnrc.yml"), PACKAGES),
    rule("package setting", Under(&[".yarn"]), PACKAGES),
    rule("package setting", Name(".pnpmfile.cjs"), PACKAGES),
    rule("package setting", Name("bunfig.toml"), PACKAGES),
    rule("package setting", Name("pip.conf"), PACKAGES),
    rule("package setting", Name("pip.ini"), PACKAGES),
    rule("package setting", Name(".pydistutils.cfg"), PACKAGES),
    rule(
        "package setting",
        Under(&[".cargo"]),
        "cargo, and an editor with it, runs what it names",
    ),
    rule("package setting", Under(&[".mvn"]), PACKAGES),
    rule("package setting", Under(&[".bundle"]), PACKAGES),
    rule("commit hooks", Name(".pre-commit-config.yaml"), HOOKS_TOOL),
    rule("commit hooks", Name(".pre-commit-config.yml"), HOOKS_TOOL),
    rule("commit hooks", Name("lefthook.yml"), HOOKS_TOOL),
    rule("commit hooks", Name("lefthook.yaml"), HOOKS_TOOL),
    rule("commit hooks", Name(".lefthook.yml"), HOOKS_TOOL),
    rule("commit hooks", Name(".overcommit.yml"), HOOKS_TOOL),
    rule("python start", Name("conftest.py"), PYTHON),
    rule("python start", Name("sitecustomize.py"), PYTHON),
    rule("python start", Name("usercustomize.py"), PYTHON),
    rule("python start", Ending(".pth"), PYTHON),
    rule("python start", Ending(".egg-link"), PYTHON),
    rule("shell start", Name(".bashrc"), SHELL),
    rule("shell start", Name(".bash_profile"), SHELL),
    rule("shell start", Name(".bash_login"), SHELL),
    rule("shell start", Name(".bash_logout"), SHELL),
    rule("shell start", Name(".bash_aliases"), SHELL),
    rule("shell start", Name(".profile"), SHELL),
    rule("shell start", Name(".zshrc"), SHELL),
    rule("shell start", Name(".zshenv"), SHELL),
    rule("shell start", Name(".zprofile"), SHELL),
    rule("shell start", Name(".zlogin"), SHELL),
    rule("shell start", Name(".zlogout"), SHELL),
    rule("shell start", Name(".kshrc"), SHELL),
    rule("shell start", Name(".cshrc"), SHELL),
    rule("shell start", Name(".tcshrc"), SHELL),
    rule("shell start", Name(".login"), SHELL),
    rule("shell start", Under(&[".config", "fish"]), SHELL),
    rule("shell start", Name(".inputrc"), SHELL),
    rule("tool start", Name(".gdbinit"), TOOL),
    rule("tool start", Name(".lldbinit"), TOOL),
    rule("tool start", Name(".rprofile"), TOOL),
    rule("tool start", Name(".irbrc"), TOOL),
    rule("tool start", Name(".pryrc"), TOOL),
    rule("tool start", Name(".psqlrc"), TOOL),
    rule("tool start", Name(".sqliterc"), TOOL),
    rule("tool start", Name(".screenrc"), TOOL),
    rule("tool start", Name(".tmux.conf"), TOOL),
    rule("tool start", Name(".curlrc"), TOOL),
    rule("tool start", Name(".wgetrc"), TOOL),
    rule("login", Name("authorized_keys"), LOGIN),
    rule("login", Name("authorized_keys2"), LOGIN),
    rule("login", Under(&[".ssh"]), LOGIN),
    rule("login", Name(".xinitrc"), LOGIN),
    rule("login", Name(".xsession"), LOGIN),
    rule("login", Name(".xprofile"), LOGIN),
    rule("login", Name(".xsessionrc"), LOGIN),
    rule("login", Name(".pam_environment"), LOGIN),
    rule("autostart", Under(&["autostart"]), LOGIN),
    rule("autostart", Under(&["launchagents"]), LOGIN),
    rule("autostart", Under(&["systemd", "user"]), LOGIN),
    rule(
        "autostart",
        Under(&["systemd", "system"]),
        "the system starts it",
    ),
    rule(
        "autostart",
        Ending(".desktop"),
        "a desktop runs it when it is opened, or at a login",
    ),
];
