from tests.support.fixtures import channel, live, model_folder, vector_folder

__all__ = ["channel", "live", "model_folder", "vector_folder"]
