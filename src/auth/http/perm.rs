//! Permissions as types, for handlers' signatures.

use crate::rights::Permission;

/// The permission that a handler needs.
pub trait Need: 'static {
    /// `None`: any authenticated caller.
    const PERMISSION: Option<Permission>;
}

macro_rules! needs {
    ($($name:ident = $permission:expr;)+) => {
        $(
            #[doc = concat!("[`", stringify!($permission), "`]")]
            #[derive(Debug)]
            pub enum $name {}

            impl Need for $name {
                const PERMISSION: Option<Permission> = $permission;
            }
        )+
    };
}

needs! {
    Any = None;
    TenantsWrite = Some(Permission::TenantsWrite);
    ServicesRead = Some(Permission::ServicesRead);
    ServicesWrite = Some(Permission::ServicesWrite);
    ConsumersRead = Some(Permission::ConsumersRead);
    ConsumersWrite = Some(Permission::ConsumersWrite);
    KeysRead = Some(Permission::KeysRead);
    KeysWrite = Some(Permission::KeysWrite);
    KeysRevoke = Some(Permission::KeysRevoke);
    Verify = Some(Permission::Verify);
    Introspect = Some(Permission::Introspect);
    UsageRead = Some(Permission::UsageRead);
    AuditRead = Some(Permission::AuditRead);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_permission_has_its_type() {
        fn of<P: Need>() -> Option<Permission> {
            P::PERMISSION
        }
        let types = [
            of::<TenantsWrite>(),
            of::<ServicesRead>(),
            of::<ServicesWrite>(),
            of::<ConsumersRead>(),
            of::<ConsumersWrite>(),
            of::<KeysRead>(),
            of::<KeysWrite>(),
            of::<KeysRevoke>(),
            of::<Verify>(),
            of::<Introspect>(),
            of::<UsageRead>(),
            of::<AuditRead>(),
        ];
        assert_eq!(types, Permission::ALL.map(Some));
        assert_eq!(of::<Any>(), None);
    }
}
