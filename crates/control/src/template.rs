//! Templates: what the node can make machines from.

use nullspace_node_api::NodeTemplate;
use nullspace_types::template::Template;
use nullspace_types::{Code, Error, Result};

use crate::Control;

impl Control {
    /// Every template.
    pub async fn template_list(&self) -> Result<Vec<Template>> {
        let templates = self.shared.node.template_list().await?;
        Ok(templates
            .into_iter()
            .map(|template| Template {
                id: template.name.clone(),
                name: template.name,
                description: template.description,
                builtin: true,
                disk_mb: template.disk_mb,
                created_at: template.created_at,
            })
            .collect())
    }

    /// The template of this name.
    pub(crate) async fn template(&self, name: &str) -> Result<NodeTemplate> {
        let templates = self.shared.node.template_list().await?;
        let known = templates.iter().map(|template| template.name.as_str()).collect::<Vec<_>>().join(", ");
        templates.into_iter().find(|template| template.name == name).ok_or_else(|| {
            Error::new(Code::TemplateNotFound, format!("template {name:?} does not exist"))
                .suggest(format!("use one of: {known}"))
        })
    }
}
