//! The uploads of one chunk: nearly always a single one, so a sorted list that takes no more than that.

use std::slice::Iter;

use dfs::types::Instance;

/// A set of at most [`dfs::limits::INSTANCES_PER_CHUNK_MAX`].
#[derive(Debug)]
pub(super) struct Instances(Vec<Instance>);

impl Instances {
    pub fn of(instance: Instance) -> Self {
        Instances(vec![instance])
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, instance: &Instance) -> bool {
        self.0.binary_search(instance).is_ok()
    }

    /// Whether it was not there before.
    pub fn insert(&mut self, instance: Instance) -> bool {
        self.0.binary_search(&instance).map_err(|at| self.0.insert(at, instance)).is_err()
    }

    /// Whether it was there.
    pub fn remove(&mut self, instance: &Instance) -> bool {
        self.0.binary_search(instance).map(|at| self.0.remove(at)).is_ok()
    }

    /// In order.
    pub fn iter(&self) -> Iter<'_, Instance> {
        self.0.iter()
    }

    /// Those behind that one, in order.
    pub fn behind(&self, instance: Option<Instance>) -> Iter<'_, Instance> {
        let from = instance.map_or(0, |instance| self.0.partition_point(|&other| other <= instance));
        self.0[from..].iter()
    }
}

#[cfg(test)]
mod tests {
    use dfs::types::SessionId;

    use super::*;

    #[test]
    fn each_is_there_once_and_in_order() {
        let instance = |counter| Instance { session: SessionId(1), counter };
        let mut instances = Instances::of(instance(5));
        assert!(instances.insert(instance(9)) && instances.insert(instance(2)) && !instances.insert(instance(5)));
        assert_eq!(instances.iter().map(|instance| instance.counter).collect::<Vec<_>>(), [2, 5, 9]);
        assert_eq!(instances.behind(Some(instance(2))).map(|instance| instance.counter).collect::<Vec<_>>(), [5, 9]);
        assert_eq!((instances.behind(None).count(), instances.behind(Some(instance(9))).count()), (3, 0));
        assert!(instances.remove(&instance(5)) && !instances.remove(&instance(5)) && !instances.contains(&instance(5)));
        assert!(instances.contains(&instance(9)) && instances.len() == 2 && !instances.is_empty());
    }
}
