DROP TABLE review_item;
DROP TABLE review_service;
DROP TABLE review;
