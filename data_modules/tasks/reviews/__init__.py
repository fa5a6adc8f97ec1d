from data_modules.tasks.reviews.environment import PositiveReviews as PositiveReviews
