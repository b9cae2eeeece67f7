//! Sending a folder to a hub: what goes is listed first, large contents are sent apart from the commit and never twice, and a repository that is made for
//! it is private unless the caller says otherwise.

mod hugging_face;
mod model_scope;
mod object;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::HubError;
use crate::name::{HubKind, RepoRef};
use crate::path;
use crate::snapshot::Hub;
use crate::watch::Watch;

/// The most files of a folder.
const MAX_FILES: usize = 10_000;
/// How deep its folders may lie.
const MAX_DEPTH: usize = 16;

/// A file that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushFile {
    /// Its path in the repository.
    pub path: String,
    /// Its path here.
    pub local: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct PushPlan {
    /// Where to.
    pub repo: RepoRef,
    /// The folder.
    pub folder: PathBuf,
    /// Its files, in ascending order of paths.
    pub files: Vec<PushFile>,
    /// Files that stay here, because their names begin with a dot.
    pub hidden: usize,
}

/// How it is sent.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Whether everybody may see it.
    pub public: bool,
    /// The commit's message.
    pub message: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// The commit, if the hub says it; none where nothing had changed.
    pub commit: Option<String>,
    /// The repository's page.
    pub page: String,
    /// Whether the repository was made for it.
    pub created: bool,
    /// Files in the commit.
    pub files: usize,
    /// Files that the hub has already, with the same content.
    pub unchanged: usize,
    /// Files that the hub's own rules leave out.
    pub ignored: Vec<String>,
    /// Bytes of large contents that were sent.
    pub sent: u64,
}

impl PushPlan {
    /// Lists a folder. Asks no network.
    ///
    /// # Errors
    /// A folder that cannot be read, that holds nothing, or a path that no hub takes.
    pub fn new(folder: &Path, repo: &RepoRef) -> Result<Self, HubError> {
        let refuse = |message: String| HubError::Push { folder: folder.to_owned(), message };
        if !folder.is_dir() {
            return Err(refuse("it is no folder".to_owned()));
        }
        let mut plan = Self { repo: repo.clone(), folder: folder.to_owned(), files: Vec::new(), hidden: 0 };
        plan.walk(folder, "", 0)?;
        if plan.files.is_empty() {
            return Err(refuse("it holds no file".to_owned()));
        }
        plan.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(plan)
    }

    fn walk(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), HubError> {
        let refuse = |message: String| HubError::Push { folder: folder.to_owned(), message };
        for entry in fs::read_dir(folder).map_err(HubError::io("list", folder))? {
            let entry = entry.map_err(HubError::io("list", folder))?;
            let name = entry.file_name().into_string().map_err(|n| refuse(format!("the name {} is not UTF-8", n.to_string_lossy())))?;
            let local = entry.path();
            let kind = entry.file_type().map_err(HubError::io("read", &local))?;
            // What tools keep for themselves, and where secrets lie: .git, .cache, .env.
            if name.starts_with('.') {
                self.hidden += 1;
                continue;
            }
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            path::check(&path).map_err(|source| HubError::Path { repo: self.repo.to_string(), source })?;
            if kind.is_dir() {
                if depth >= MAX_DEPTH {
                    return Err(refuse(format!("its folders lie more than {MAX_DEPTH} deep")));
                }
                self.walk(&local, &path, depth + 1)?;
                continue;
            }
            // Through links to files, as those of a model cache; never through links to folders.
            let about = fs::metadata(&local).map_err(HubError::io("read", &local))?;
            if !about.is_file() {
                return Err(refuse(format!("{path} is neither a file nor a folder (or a link to a folder)")));
            }
            self.files.push(PushFile { path, local, size: about.len() });
            if self.files.len() > MAX_FILES {
                return Err(refuse(format!("it holds more than {MAX_FILES} files")));
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }
}

impl Hub {
    /// Sends what a plan lists. What an earlier attempt has sent of large contents is not sent again.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn push(&self, plan: &PushPlan, options: &PushOptions, watch: &dyn Watch) -> Result<Pushed, HubError> {
        let client = self.client(plan.repo.hub)?;
        if !client.has_token() {
            return Err(HubError::NoToken { hub: plan.repo.hub });
        }
        let base = &self.settings.endpoint(plan.repo.hub).url;
        match plan.repo.hub {
            HubKind::HuggingFace => hugging_face::push(&client, base, plan, options, watch),
            HubKind::ModelScope => model_scope::push(&client, base, plan, options, watch),
        }
    }
}

/// A repository that everybody sees, where only its owner was meant to.
fn public_repo(plan: &PushPlan) -> HubError {
    let message = format!("{} is public, and so would be what is sent; say --public if that is meant", plan.repo.id);
    HubError::Push { folder: plan.folder.clone(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_lists_what_is_there_and_nothing_hidden() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        };
        let repo = RepoRef::parse("hf://me/x").unwrap();
        assert!(PushPlan::new(folder.path(), &repo).unwrap_err().to_string().contains("holds no file"));
        for name in ["b/c.json", "a.safetensors", ".env", ".git/config"] {
            write(name);
        }
        let plan = PushPlan::new(folder.path(), &repo).unwrap();
        let paths: Vec<_> = plan.files.iter().map(|f| (f.path.as_str(), f.size)).collect();
        assert_eq!((paths, plan.hidden, plan.bytes()), (vec![("a.safetensors", 13), ("b/c.json", 8)], 2, 21));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/etc", folder.path().join("etc")).unwrap();
            assert!(PushPlan::new(folder.path(), &repo).unwrap_err().to_string().contains("etc is neither a file nor a folder"));
        }
        assert!(PushPlan::new(Path::new("/not/there"), &repo).unwrap_err().to_string().contains("no folder"));
    }
}
