"""One application, two databases; `BOOKS` in the environment says which of them holds the books."""

SECRET_KEY = "of no worth: nothing is signed"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["library", "rest_framework"]
ROOT_URLCONF = "library.api"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/tmp/books.sqlite3", "CONN_MAX_AGE": None},
    "postgresql": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "HOST": "/tmp", "CONN_MAX_AGE": None},
}
DATABASE_ROUTERS = ["library.router.Router"]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.PageNumberPagination",
    "PAGE_SIZE": 10,
}
