//! Taking views away: of layers and chains that nobody uses, of names that lied, of what an earlier process left.

use std::{collections::HashSet, sync::atomic::Ordering};

use silk_model::Digest;

use super::{LayerFiles, Views, Wants, devices, images, remove_file};
use crate::{MountError, ViewError, ViewName, meta, view::ChainName};

/// How a mount is taken away.
type Hide<'a> = &'a dyn Fn(&ViewName) -> Result<(), MountError>;

impl Views {
    /// Takes away a layer's views as [`Views::hide_layer`] and then does `then` (deletes its files, say), unless
    /// `in_use`; `None` if it is. A [`Views::lowers`] on its way either finds the layer as it was or, when its caller
    /// made `in_use` true before, keeps it: it asks for the base first, and this holds that layer until it is done.
    ///
    /// `in_use` and `then` must not wait for anybody who is in [`Views::lowers`].
    ///
    /// # Errors
    /// When the kernel refuses to unmount; `then` was not done.
    pub fn retire<R>(
        &self,
        files: &dyn LayerFiles,
        diff_id: &Digest,
        in_use: &dyn Fn() -> bool,
        then: impl FnOnce() -> R,
    ) -> Result<Option<R>, ViewError> {
        self.layers.take(diff_id, || {
            if in_use() {
                return Ok(None);
            }
            files.let_go(diff_id);
            self.hide_layer(files, diff_id)?;
            Ok(Some(then()))
        })
    }

    /// Takes away a layer's views whose bytes are damaged, whoever uses them, and then does `then`. Containers that run on its trees get ESTALE for what
    /// they have not read; those that stand on mounts of its keep them.
    ///
    /// # Errors
    /// As [`Views::retire`].
    pub fn drop_damaged<R>(
        &self,
        files: &dyn LayerFiles,
        diff_id: &Digest,
        then: impl FnOnce() -> R,
    ) -> Result<R, ViewError> {
        self.layers.take(diff_id, || {
            // A view that is being mounted over its data on another layer's turn may not be found: it undoes itself.
            self.lies.fetch_add(1, Ordering::SeqCst);
            files.let_go(diff_id);
            // The kernel keeps damaged pages of a tree, and would show them in the next one of its number.
            let disown: Hide<'_> = &|name| self.mounts.disown(name);
            self.take_layer(files, diff_id, disown)?;
            let done = then();
            // One that was made anew since then and before the data was gone.
            self.lies.fetch_add(1, Ordering::SeqCst);
            self.hide_users(diff_id, &|user| user.layers.contains(diff_id), disown)?;
            Ok(done)
        })
    }

    /// Takes away the views that a layer has on parent chains which are not `in_use`, with what they were made of: the layer may be in use
    /// for ever on other chains, as an application's is whose base is made anew each week. A [`Views::lowers`] on its way makes its own again
    /// unless its caller made `in_use` true before.
    ///
    /// `in_use` must not wait for anybody who is in [`Views::lowers`].
    ///
    /// # Errors
    /// When the kernel refuses to unmount, or a file cannot be deleted.
    pub fn retire_chains(&self, in_use: &dyn Fn() -> HashSet<ChainName>) -> Result<(), ViewError> {
        let chains: Vec<_> = self.chains().iter().map(|(name, wants)| (*name, wants.meta.clone())).collect();
        if chains.is_empty() {
            return Ok(());
        }
        let used = in_use();
        for (name, meta) in chains {
            let Some((layer, chain)) = ChainName::of_file(&meta).filter(|(_, chain)| !used.contains(chain)) else {
                continue;
            };
            self.layers.take(&layer, || {
                if in_use().contains(&chain) {
                    return Ok(());
                }
                self.mounts.hide_name(&name).map_err(|source| ViewError::Mount { layer, source })?;
                self.chains().remove(&name);
                remove_file(&meta)
            })?;
        }
        Ok(())
    }

    /// Has the layer views? Without, there is nothing to retire.
    pub fn shows(&self, diff_id: &Digest) -> bool {
        self.viewed().contains(diff_id)
    }

    /// Takes away all views of a layer, and those of other layers that point into its data. Call it before the layer's
    /// files are deleted: a mount keeps the space of deleted ones. Overlays that stand on them keep what they have.
    ///
    /// # Errors
    /// When the kernel refuses to unmount.
    pub fn hide_layer(&self, files: &dyn LayerFiles, diff_id: &Digest) -> Result<(), ViewError> {
        self.take_layer(files, diff_id, &|name| self.mounts.hide_name(name))
    }

    fn take_layer(&self, files: &dyn LayerFiles, diff_id: &Digest, hide: Hide<'_>) -> Result<(), ViewError> {
        let failed = |source| ViewError::Mount { layer: *diff_id, source };
        for (_, name) in images(&files.layer_path(diff_id), diff_id)? {
            hide(&name).map_err(failed)?;
            self.chains().remove(&name);
        }
        self.hide_users(diff_id, &|user| user.layers.contains(diff_id), hide)?;
        self.dependences().remove(diff_id);
        self.viewed().remove(diff_id);
        Ok(())
    }

    /// Takes away views of other layers, for the sake of `diff_id`, and deletes what they were made of.
    fn hide_users(&self, diff_id: &Digest, is_user: &dyn Fn(&Wants) -> bool, hide: Hide<'_>) -> Result<(), ViewError> {
        let users: Vec<_> = self.chains().iter().filter(|(_, wants)| is_user(wants)).map(|(name, _)| *name).collect();
        for name in users {
            hide(&name).map_err(|source| ViewError::Mount { layer: *diff_id, source })?;
            if let Some(Wants { meta, .. }) = self.chains().remove(&name) {
                remove_file(&meta)?;
            }
        }
        Ok(())
    }

    /// A layer changed its ground. Its views, and those of other layers that point into it, are mounted from what it is now,
    /// in the place of the old mounts; if its names `lied`, they are taken away, and what was made of its names is deleted.
    /// Overlays that stand on the old mounts keep them.
    ///
    /// # Errors
    /// When the kernel refuses, or a file cannot be deleted.
    pub fn renew_layer(&self, files: &dyn LayerFiles, diff_id: &Digest, lied: bool) -> Result<(), ViewError> {
        self.layers.take(diff_id, || {
            if lied {
                self.lies.fetch_add(1, Ordering::SeqCst);
            }
            let own = images(&files.layer_path(diff_id), diff_id)?;
            if lied {
                let disown: Hide<'_> = &|name| self.mounts.disown(name);
                self.take_layer(files, diff_id, disown)?;
                // Also those that took no more from it than the mode of a directory, or may have.
                let is_above = |user: &Wants| user.below.as_ref().is_none_or(|below| below.contains(diff_id));
                self.hide_users(diff_id, &is_above, disown)?;
                own.iter().try_for_each(|(meta, _)| remove_file(meta))?;
                return remove_file(&files.layer_path(diff_id).join("depends"));
            }
            let users = self
                .chains()
                .iter()
                .filter(|(_, w)| w.layers.contains(diff_id))
                .map(|(n, w)| (w.meta.clone(), *n))
                .collect::<Vec<_>>();
            let mut outcome = Ok(());
            for (meta, name) in own.into_iter().chain(users) {
                let layers = meta::wanted(&meta).unwrap_or_default();
                let replaced = devices(files, &layers).and_then(|(devices, ground)| {
                    let replaced = self.mounts.replace(&name, &meta, &devices, ground);
                    replaced.map_err(|source| ViewError::Mount { layer: *diff_id, source })
                });
                // The others need not stay as they are.
                outcome = outcome.and(replaced);
            }
            outcome
        })
    }

    /// The names of all views of these layers that there are images of.
    ///
    /// # Errors
    /// When a layer's directory cannot be read.
    pub fn names(&self, files: &dyn LayerFiles, layers: &[Digest]) -> Result<HashSet<String>, ViewError> {
        let mut names = HashSet::new();
        for layer in layers {
            names.extend(images(&files.layer_path(layer), layer)?.into_iter().map(|(_, name)| name.to_string()));
        }
        Ok(names)
    }

    /// Takes away the views that an earlier process left of layers that are not whole any more. `whole` are those
    /// that are.
    ///
    /// # Errors
    /// When a layer's directory cannot be read, or the kernel refuses to unmount.
    pub fn sweep(&self, files: &dyn LayerFiles, whole: &[Digest]) -> Result<(), ViewError> {
        let here: std::collections::HashSet<_> = whole.iter().collect();
        let mut keep = std::collections::HashSet::new();
        for diff_id in whole {
            for (meta, name) in images(&files.layer_path(diff_id), diff_id)? {
                // One of another silk is made again: what that one made of the layer may have been wrong.
                let wanted = meta::wanted(&meta);
                if wanted.is_none() {
                    remove_file(&files.layer_path(diff_id).join("depends"))?;
                }
                if let Some(layers) = wanted.filter(|layers| layers.iter().all(|layer| here.contains(layer))) {
                    if ChainName::of_file(&meta).is_some() {
                        self.chains().insert(name, Wants { meta, layers, below: None });
                    }
                    self.viewed().insert(*diff_id);
                    keep.insert(name);
                } else {
                    remove_file(&meta)?;
                }
            }
        }
        let hidden = self.mounts.hide_unknown(&|name| keep.contains(name));
        let layer = whole.first().copied().unwrap_or(Digest::new([0; 32]));
        let hidden = hidden.map_err(|source| ViewError::Mount { layer, source })?;
        if !hidden.is_empty() {
            tracing::info!(count = hidden.len(), "took away mounts of layers that are gone");
        }
        Ok(())
    }
}
