//! The tables, the same in both databases. Times are Unix milliseconds; JSON is text.

diesel::table! {
    tenant (id) {
        id -> Text,
        slug -> Text,
        name -> Text,
        metadata -> Text,
        disabled_at -> Nullable<BigInt>,
        deleted_at -> Nullable<BigInt>,
        version -> BigInt,
        created_at -> BigInt,
        updated_at -> BigInt,
    }
}

diesel::table! {
    service (id) {
        id -> Text,
        tenant_id -> Text,
        slug -> Text,
        name -> Text,
        description -> Text,
        /// JSON of `ServiceSettings`.
        settings -> Text,
        metadata -> Text,
        disabled_at -> Nullable<BigInt>,
        deleted_at -> Nullable<BigInt>,
        version -> BigInt,
        created_at -> BigInt,
        updated_at -> BigInt,
    }
}

diesel::table! {
    consumer (id) {
        id -> Text,
        tenant_id -> Text,
        slug -> Text,
        external_id -> Nullable<Text>,
        name -> Text,
        rate_limits -> Text,
        quota -> Nullable<Text>,
        metadata -> Text,
        disabled_at -> Nullable<BigInt>,
        deleted_at -> Nullable<BigInt>,
        version -> BigInt,
        created_at -> BigInt,
        updated_at -> BigInt,
    }
}

diesel::table! {
    api_key (id) {
        id -> Text,
        tenant_id -> Text,
        consumer_id -> Text,
        lookup_id -> Text,
        prefix -> Text,
        environment -> Text,
        name -> Text,
        external_id -> Nullable<Text>,
        not_before -> Nullable<BigInt>,
        expires_at -> Nullable<BigInt>,
        rate_limits -> Text,
        quota -> Nullable<Text>,
        allowed_ips -> Nullable<Text>,
        metadata -> Text,
        tags -> Text,
        disabled_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
        revoked_by -> Nullable<Text>,
        reason -> Nullable<Text>,
        rotated_at -> Nullable<BigInt>,
        last_used_at -> Nullable<BigInt>,
        version -> BigInt,
        created_at -> BigInt,
        /// The actor as canonical JSON, and in one word for the filter.
        created_by -> Text,
        created_by_name -> Text,
        updated_at -> BigInt,
    }
}

diesel::table! {
    key_grant (key_id, service_id) {
        key_id -> Text,
        service_id -> Text,
        position -> Integer,
        scopes -> Text,
        rate_limits -> Nullable<Text>,
    }
}

diesel::table! {
    key_tag (key_id, tag) {
        key_id -> Text,
        tag -> Text,
    }
}

diesel::table! {
    secret (id) {
        id -> Text,
        key_id -> Text,
        fingerprint -> Nullable<Binary>,
        pepper_version -> Nullable<Integer>,
        verifier -> Nullable<Text>,
        created_at -> BigInt,
        valid_until -> Nullable<BigInt>,
        superseded_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
        last_used_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    pepper (version) {
        version -> Integer,
        master_id -> Text,
        check_value -> Binary,
        state -> Text,
        created_at -> BigInt,
        current_from -> BigInt,
    }
}

diesel::table! {
    idempotency (scope) {
        /// SHA-256 in hex over tenant, caller, method, path and the client's key.
        scope -> Text,
        body_hash -> Binary,
        status -> Integer,
        /// JSON: the ids that the first answer told of.
        outcome -> Text,
        created_at -> BigInt,
    }
}

diesel::table! {
    quota_count (counter, period_start) {
        /// 128 bits that name the counter.
        counter -> Binary,
        period_start -> BigInt,
        used -> BigInt,
    }
}

diesel::table! {
    node (id) {
        /// Of one life of a process.
        id -> Text,
        /// Every change up to this number is known there.
        position -> BigInt,
        seen_at -> BigInt,
        /// How long it may go on deciding that Redis alone reaches, in milliseconds.
        stale_max_ms -> BigInt,
    }
}

diesel::table! {
    change_head (id) {
        id -> Integer,
        seq -> BigInt,
    }
}

diesel::table! {
    change (seq, kind, id) {
        seq -> BigInt,
        kind -> Text,
        id -> Text,
        at -> BigInt,
    }
}

diesel::table! {
    audit_head (tenant_id) {
        tenant_id -> Text,
        seq -> BigInt,
        hash -> Binary,
        mac -> Binary,
    }
}

diesel::table! {
    audit_event (tenant_id, seq) {
        tenant_id -> Text,
        seq -> BigInt,
        id -> Text,
        at -> BigInt,
        actor -> Text,
        via -> Nullable<Text>,
        action -> Text,
        target_kind -> Text,
        target_id -> Text,
        outcome -> Text,
        request_id -> Nullable<Text>,
        ip -> Nullable<Text>,
        /// Slugs, each between commas.
        services -> Nullable<Text>,
        /// RFC 8785 canonical JSON of the event: what the chain is computed over.
        record -> Text,
        prev_hash -> Binary,
        hash -> Binary,
    }
}

diesel::table! {
    usage_head (id) {
        id -> Integer,
        seq -> BigInt,
    }
}

diesel::table! {
    usage_batch (node, number) {
        node -> Text,
        number -> BigInt,
        /// In the order of the commits; null only inside the transaction.
        seq -> Nullable<BigInt>,
        first_at -> BigInt,
        last_at -> BigInt,
        events -> BigInt,
        shed -> BigInt,
        stored_at -> BigInt,
    }
}

diesel::table! {
    /// Batches whose rows are gone.
    usage_stored (node, from_number) {
        node -> Text,
        from_number -> BigInt,
        /// Inclusive.
        to_number -> BigInt,
    }
}

diesel::table! {
    usage_event (tenant_id, at, id) {
        tenant_id -> Text,
        at -> BigInt,
        id -> Text,
        node -> Text,
        batch -> BigInt,
        /// Empty with the next three when no key was identified.
        key_id -> Text,
        secret_id -> Text,
        superseded -> Integer,
        consumer_id -> Text,
        service -> Text,
        environment -> Text,
        operation -> Text,
        outcome -> Text,
        ip -> Nullable<Text>,
        caller -> Text,
        request_id -> Text,
        token_id -> Nullable<Text>,
        subject -> Nullable<Text>,
        actor -> Nullable<Text>,
        /// JSON: what is shown and not asked for.
        detail -> Text,
    }
}

diesel::table! {
    usage_minute (tenant_id, start, key_id, secret_id, superseded, service, outcome, operation, caller) {
        tenant_id -> Text,
        start -> BigInt,
        key_id -> Text,
        secret_id -> Text,
        superseded -> Integer,
        service -> Text,
        outcome -> Text,
        operation -> Text,
        caller -> Text,
        consumer_id -> Text,
        uses -> BigInt,
        cost -> BigInt,
    }
}

diesel::table! {
    usage_hour (tenant_id, start, key_id, secret_id, superseded, service, outcome, operation, caller) {
        tenant_id -> Text,
        start -> BigInt,
        key_id -> Text,
        secret_id -> Text,
        superseded -> Integer,
        service -> Text,
        outcome -> Text,
        operation -> Text,
        caller -> Text,
        consumer_id -> Text,
        uses -> BigInt,
        cost -> BigInt,
    }
}

diesel::table! {
    usage_day (tenant_id, start, service, outcome, operation) {
        tenant_id -> Text,
        start -> BigInt,
        service -> Text,
        outcome -> Text,
        operation -> Text,
        uses -> BigInt,
        cost -> BigInt,
    }
}

diesel::table! {
    usage_ip (tenant_id, day, key_id, ip) {
        tenant_id -> Text,
        day -> BigInt,
        key_id -> Text,
        ip -> Text,
        uses -> BigInt,
        first_at -> BigInt,
        last_at -> BigInt,
    }
}

diesel::table! {
    usage_scope (tenant_id, day, key_id, service, scope) {
        tenant_id -> Text,
        day -> BigInt,
        key_id -> Text,
        service -> Text,
        scope -> Text,
        uses -> BigInt,
        last_at -> BigInt,
    }
}

diesel::table! {
    usage_stranger (tenant_id, hour, caller, service, outcome, operation, ip) {
        tenant_id -> Text,
        hour -> BigInt,
        caller -> Text,
        service -> Text,
        outcome -> Text,
        operation -> Text,
        ip -> Text,
        uses -> BigInt,
    }
}

diesel::table! {
    audit_key (kid) {
        kid -> Text,
        public_key -> Binary,
        from -> BigInt,
        until -> Nullable<BigInt>,
        mac -> Binary,
    }
}

diesel::table! {
    audit_checkpoint (tenant_id, seq, kind) {
        tenant_id -> Text,
        seq -> BigInt,
        kind -> Text,
        at -> BigInt,
        /// RFC 8785 canonical JSON, with its signature.
        statement -> Text,
    }
}

diesel::table! {
    review (id) {
        id -> Text,
        tenant_id -> Text,
        name -> Text,
        /// JSON, as the next one.
        filter -> Text,
        thresholds -> Text,
        created_at -> BigInt,
        created_by -> Text,
        reason -> Nullable<Text>,
        /// The instant of its keys; null until all of them are in it.
        as_of -> Nullable<BigInt>,
        keys -> BigInt,
        /// JSON: how many keys each finding has.
        findings -> Text,
        /// SHA-256 in hex over its keys, as its audit line has it.
        digest -> Nullable<Text>,
        closed_at -> Nullable<BigInt>,
        closed_by -> Nullable<Text>,
        close_reason -> Nullable<Text>,
    }
}

diesel::table! {
    review_service (review_id, service) {
        review_id -> Text,
        service -> Text,
    }
}

diesel::table! {
    review_item (review_id, key_id) {
        review_id -> Text,
        key_id -> Text,
        /// RFC 8785 canonical JSON of the key as it stood.
        record -> Text,
        /// Each between commas.
        findings -> Text,
        decision -> Text,
        note -> Nullable<Text>,
        own -> Integer,
        carried_out -> Integer,
        decided_at -> Nullable<BigInt>,
        decided_by -> Nullable<Text>,
        decided_by_name -> Nullable<Text>,
    }
}

diesel::table! {
    usage_seal (id) {
        id -> Integer,
        sealed_to -> BigInt,
    }
}

diesel::table! {
    usage_late (tenant_id, start, seq, key_id, secret_id, superseded, service, outcome, operation, caller) {
        seq -> BigInt,
        tenant_id -> Text,
        start -> BigInt,
        key_id -> Text,
        secret_id -> Text,
        superseded -> Integer,
        service -> Text,
        outcome -> Text,
        operation -> Text,
        caller -> Text,
        consumer_id -> Text,
        uses -> BigInt,
        cost -> BigInt,
    }
}

diesel::table! {
    signing_key (generation) {
        generation -> BigInt,
        kid -> Text,
        algorithm -> Text,
        master_id -> Text,
        private_key -> Binary,
        active_from -> BigInt,
        created_at -> BigInt,
    }
}

diesel::table! {
    revoked_token (id) {
        id -> Text,
        tenant_id -> Text,
        expires_at -> BigInt,
    }
}

diesel::allow_tables_to_appear_in_same_query!(
    tenant, service, consumer, api_key, key_grant, key_tag, secret, pepper
);

// What a key is loaded from, with the counter of changes as it was then.
diesel::allow_tables_to_appear_in_same_query!(change_head, secret);
diesel::allow_tables_to_appear_in_same_query!(change_head, api_key);
diesel::allow_tables_to_appear_in_same_query!(change_head, key_grant);
diesel::allow_tables_to_appear_in_same_query!(change_head, pepper);

diesel::allow_tables_to_appear_in_same_query!(change_head, change);

diesel::allow_tables_to_appear_in_same_query!(audit_event, audit_head);

diesel::allow_tables_to_appear_in_same_query!(review, review_service);
