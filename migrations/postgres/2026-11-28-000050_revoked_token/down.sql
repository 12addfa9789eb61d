DROP TABLE revoked_token;
