"""Where books are kept."""

import os


class Router:
    """The database that `BOOKS` names; tables are made in both."""

    def db_for_read(self, _model, **_hints):
        return os.environ.get("BOOKS")

    db_for_write = db_for_read
