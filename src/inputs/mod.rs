//! What a request brings: text, pictures, noise.
