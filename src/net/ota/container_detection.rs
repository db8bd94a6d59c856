//! Whether this process runs in a container, whose proxy may hide the addresses of all devices behind one private address.

use std::fs;
use std::path::Path;

/// Parts of the names of control groups that container engines give.
const CONTROL_GROUPS: [&str; 5] = ["docker", "kubepods", "containerd", "libpod", "crio-"];

/// By the files and variables that Docker, Podman and Kubernetes leave.
pub(crate) fn is_container() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() || has_marks(Path::new("/"))
}

fn has_marks(root: &Path) -> bool {
    let groups = fs::read_to_string(root.join("proc/1/cgroup")).unwrap_or_default();
    root.join(".dockerenv").exists()
        || root.join("run/.containerenv").exists()
        || CONTROL_GROUPS.iter().any(|name| groups.contains(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn container_engines_leave_marks() {
        let root = std::env::temp_dir().join(format!("container-marks-{}", std::process::id()));
        for (file, text, marked) in [
            ("etc/hosts", "", false),
            (".dockerenv", "", true),
            ("run/.containerenv", "", true),
            ("proc/1/cgroup", "0::/init.scope\n", false),
            ("proc/1/cgroup", "12:cpu:/docker/0123\n", true),
            ("proc/1/cgroup", "0::/kubepods.slice/kubepods-pod1.slice\n", true),
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            assert_eq!(has_marks(&root), marked, "{file}: {text}");
            fs::remove_file(&path).unwrap();
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
